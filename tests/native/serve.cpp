// Load the compiled library and a package of AOTInductor without Python, run the package on ones
// and print the sum of the result. Usage: serve LIBRARY PACKAGE
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <iostream>

int main(int, char** argv) {
  if (!dlopen(argv[1], RTLD_NOW)) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader package(argv[2]);
  std::vector<at::Tensor> inputs;
  inputs.push_back(at::ones({3, 5, 12}));
  inputs.push_back(at::ones({3, 7, 10}));
  std::cout << package.run(inputs)[0].sum().item<double>() << "\n";
}
