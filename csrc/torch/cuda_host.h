// Torch's device, stream and memory for the CUDA kernels.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "cuda/problem.h"
#include "torch/outputs.h"

#ifndef ATTNKERNELS_EMULATED
// A symbol of torch's CUDA library: weak, so that this library loads without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace attnkernels {

#ifdef ATTNKERNELS_EMULATED
struct Device {
  explicit Device(const Tensor&) {}
  void* stream() const { return nullptr; }
  int index() const { return 0; }
};
#else
class Device {
 public:
  explicit Device(const Tensor& on) : index_(on.get_device_index()), guard_(index_) {}
  void* stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "attnkernels: this torch has no CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }
  int index() const { return index_; }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

// Torch's stream and memory, for the kernels. Small calls ask for some ten pieces of scratch
// memory, and torch takes half a microsecond for each: pieces share a chunk.
class CudaHost {
 public:
  explicit CudaHost(const Tensor& on)
      : on_(on), device_(on),
        host{device_.stream(), cuda::processors(device_.index()), this, allocate} {}
  CudaHost(const CudaHost&) = delete;

 private:
  const Tensor& on_;
  Device device_;
  std::vector<Tensor> memory_;
  char* chunk_ = nullptr;
  int64_t left_ = 0;  // bytes of the chunk

#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kScratch = 0;  // each piece by itself, so that its ends are watched
#else
  static constexpr int64_t kScratch = 256 << 10;
#endif
  static constexpr int64_t kAligned = 256;  // as torch's own memory is

  char* take(int64_t bytes) {
    memory_.push_back(empty(on_, {bytes / 4}, ScalarType::Float, "scratch"));
    return static_cast<char*>(memory_.back().mutable_data_ptr());
  }

  static void* allocate(void* self, int64_t bytes) {
    auto& me = *static_cast<CudaHost*>(self);
    bytes = (bytes + kAligned - 1) / kAligned * kAligned;
    if (2 * bytes > kScratch) return me.take(bytes);
    if (bytes > me.left_) {
      me.chunk_ = me.take(kScratch);
      me.left_ = kScratch;
    }
    me.left_ -= bytes;
    return me.chunk_ + me.left_;
  }

 public:
  const cuda::Host host;
};

}  // namespace attnkernels
