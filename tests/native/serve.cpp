// Load the compiled library and a package of AOTInductor without Python, and run the package on
// every list of tensors in a file that torch.save wrote. Write the lists of results likewise.
// Usage: serve LIBRARY PACKAGE INPUTS OUTPUTS
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/api/include/torch/serialize.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>
#include <iterator>

int main(int, char** argv) {
  if (!dlopen(argv[1], RTLD_NOW)) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader package(argv[2]);
  std::ifstream in(argv[3], std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(in), {});
  const c10::IValue lists = torch::pickle_load(bytes);
  c10::impl::GenericList results(c10::AnyType::get());
  for (const c10::IValue& list : lists.toListRef()) {
    std::vector<at::Tensor> inputs;
    for (const c10::IValue& each : list.toListRef()) inputs.push_back(each.toTensor());
    results.push_back(package.run(inputs));
  }
  const std::vector<char> written = torch::pickle_save(results);
  std::ofstream(argv[4], std::ios::binary).write(written.data(), written.size());
}
