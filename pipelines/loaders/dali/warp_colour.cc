// One pass over an image: bilinear warp, colour matrix, clip, conversion. DALI's CPU backend needs three operators and
// two intermediate batches for this.
//
// Inputs:  image uint8 [H, W, 3]; plan float32 [18]: affine 2×3 (output → source, from pixel corners), colour 3×4.
// Output:  [size, size, 3] of `dtype`: float32 and float16 clipped to [-1, 1], uint8 rounded and clipped to 0…255.
// Taps outside the source repeat its edge (`repeat_edges`) or are black. Sums are float32.

#include <cstring>
#include <iostream>
#include <streambuf>

#include "warp_colour.h"

#include "dali/pipeline/operator/operator.h"

namespace kimagenet {

class WarpColour : public dali::Operator<dali::CPUBackend> {
 public:
  explicit WarpColour(const dali::OpSpec &spec)
      : Operator(spec),
        size_(spec.GetArgument<int>("size")),
        dtype_(spec.GetArgument<dali::DALIDataType>("dtype")),
        repeat_edges_(spec.GetArgument<bool>("repeat_edges")) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const dali::Workspace &ws) override {
    const auto &images = ws.Input<dali::CPUBackend>(0), &plans = ws.Input<dali::CPUBackend>(1);
    const int count = images.num_samples();
    DALI_ENFORCE(images.type() == DALI_UINT8 && plans.type() == DALI_FLOAT, "the inputs must be uint8 and float32");
    for (int i = 0; i < count; i++) {
      const auto shape = images.tensor_shape(i);
      DALI_ENFORCE(shape.size() == 3 && shape[2] == 3 && volume(shape) > 0, "images must have the shape [H, W, 3]");
      DALI_ENFORCE(volume(plans.tensor_shape(i)) >= 18, "a plan must have 18 numbers or more");
    }
    outputs = {{dali::uniform_list_shape(count, dali::TensorShape<3>{size_, size_, 3}), dtype_}};
    return true;
  }

  void RunImpl(dali::Workspace &ws) override {
    const auto &images = ws.Input<dali::CPUBackend>(0), &plans = ws.Input<dali::CPUBackend>(1);
    auto &outputs = ws.Output<dali::CPUBackend>(0);
    outputs.SetLayout("HWC");
    auto &pool = ws.GetThreadPool();
    for (int i = 0; i < images.num_samples(); i++) {
      pool.AddWork([&, i](int) {
        auto shape = images.tensor_shape(i);
        Source source{images.tensor<uint8_t>(i), int(shape[0]), int(shape[1]), repeat_edges_};
        const float *plan = plans.tensor<float>(i);
        if (dtype_ == DALI_UINT8) warp_colour(outputs.mutable_tensor<uint8_t>(i), size_, source, plan);
        else if (dtype_ == DALI_FLOAT16) warp_colour(outputs.mutable_tensor<dali::float16>(i), size_, source, plan);
        else warp_colour(outputs.mutable_tensor<float>(i), size_, source, plan);
      });
    }
    pool.RunAll();
  }

 private:
  int size_;
  dali::DALIDataType dtype_;
  bool repeat_edges_;
};

DALI_REGISTER_OPERATOR(KimagenetWarpColour, WarpColour, dali::CPU);

DALI_SCHEMA(KimagenetWarpColour)
    .DocStr("Bilinear warp by an affine matrix, colour matrix, clip and conversion in one pass.")
    .NumInput(2)
    .NumOutput(1)
    .AddArg("size", "Side of the square output, pixels.", DALI_INT32)
    .AddArg("dtype", "float32, float16 or uint8.", DALI_DATA_TYPE)
    .AddArg("repeat_edges", "Whether taps outside the source are its edge, or else black.", DALI_BOOL);

// DALI's TensorFlow plugin writes a page to std::cout for each error, and then raises the same text. This leaves the page
// out and forwards everything else.
class WithoutErrorPages : public std::streambuf {
 public:
  explicit WithoutErrorPages(std::streambuf *out) : out_(out) {}

 protected:
  std::streamsize xsputn(const char *text, std::streamsize count) override {
    const char page[] = "Error DALI_";  // the plugin writes the page as one string, and std::endl
    const auto length = std::streamsize(std::strlen(page));
    line_end_follows_ = count >= length && std::memcmp(text, page, size_t(length)) == 0;
    return line_end_follows_ ? count : out_->sputn(text, count);
  }

  int_type overflow(int_type character) override {
    const bool is_left_out = line_end_follows_ && character == '\n';
    line_end_follows_ = false;
    if (is_left_out || traits_type::eq_int_type(character, traits_type::eof())) return traits_type::not_eof(character);
    return out_->sputc(traits_type::to_char_type(character));
  }

  int sync() override { return out_->pubsync(); }

 private:
  std::streambuf *out_;
  static thread_local bool line_end_follows_;
};

thread_local bool WithoutErrorPages::line_end_follows_ = false;

}  // namespace kimagenet

extern "C" void kimagenet_leave_out_error_pages() {
  static kimagenet::WithoutErrorPages *filter = nullptr;  // never freed: std::cout is flushed after everything else
  if (!filter) std::cout.rdbuf(filter = new kimagenet::WithoutErrorPages(std::cout.rdbuf()));
}
