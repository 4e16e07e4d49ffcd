// One pass over an image: bilinear warp, colour matrix, clip, conversion. DALI's CPU backend needs three operators and
// two intermediate batches for this.
//
// Inputs:  image uint8 [H, W, 3]; plan float32 [18]: affine 2×3 (output → source, from pixel corners), colour 3×4.
// Output:  [size, size, 3] of `dtype`: float32 and float16 clipped to [-1, 1], uint8 rounded and clipped to 0…255.
// Taps outside the source repeat its edge (`repeat_edges`) or are black. Sums are float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "dali/pipeline/operator/operator.h"

namespace kimagenet {

// A row of the output is computed in stages over plain arrays, so that compilers vectorize everything but the gathering.
struct Row {
  explicit Row(int size) : position(size), right(size), down(size), taps(4 * size), rgb(3 * size) {}
  std::vector<int32_t> position;   // of the upper left tap's first byte
  std::vector<float> right, down;  // distances from that tap, 0…1
  std::vector<uint32_t> taps;      // upper left, upper right, lower left, lower right; a byte a channel
  std::vector<float> rgb;          // three planes: red, green, blue
};

struct Source {
  const uint8_t *pixels;
  int height, width;
  bool repeat_edges;

  uint32_t checked(int x, int y) const {
    int near_x = std::clamp(x, 0, width - 1), near_y = std::clamp(y, 0, height - 1);
    if (!repeat_edges && (x != near_x || y != near_y)) return 0;
    const uint8_t *p = pixels + (int64_t(near_y) * width + near_x) * 3;
    return p[0] | p[1] << 8 | p[2] << 16;
  }
};

inline uint32_t load(const uint8_t *pixel) {  // the fourth byte is not used
  uint32_t word;
  std::memcpy(&word, pixel, sizeof word);
  return word;
}

// Narrows the columns [first, last) to those for which low <= start + step * column < high, or a few fewer. Callers
// leave a rim that is much wider than any rounding error of a position.
inline void narrow(float start, float step, float low, float high, int &first, int &last) {
  if (std::abs(step) < 1e-6f) {
    if (start < low || start >= high) last = first;
    return;
  }
  float a = (low - start) / step, b = (high - start) / step;
  if (a > b) std::swap(a, b);
  first = std::max(first, int(std::min(std::max(a, 0.f), 1e6f)) + 2);
  last = std::min(last, int(std::min(std::max(b, 0.f), 1e6f)) - 1);
}

// Stages 1 and 2: where each output pixel of the row comes from, and the four taps there.
// `ahead`: bytes from a pixel's source to the source of the pixel some rows below. A batch of decoded images is larger
// than the caches, and processors do not predict a slanted line through an image. So it is prefetched (0.28 ms → 0.09).
inline void gather(Row &row, int size, const Source &source, float x, float step_x, float y, float step_y,
                   int32_t ahead) {
  const float rim = 1.f / 64;
  int first = 0, last = size;
  narrow(x, step_x, rim, source.width - 2 - rim, first, last);  // a load reads one byte more than a pixel
  narrow(y, step_y, rim, source.height - 1 - rim, first, last);
  first = std::min(first, size);
  last = std::max(last, first);
  int32_t *position = row.position.data();
  float *right = row.right.data(), *down = row.down.data();
  const int32_t stride = source.width * 3;
  for (int i = 0; i < size; i++) {
    float at_x = x + step_x * i, at_y = y + step_y * i;
    float left = std::floor(at_x), top = std::floor(at_y);
    right[i] = at_x - left;
    down[i] = at_y - top;
    position[i] = int32_t(top) * stride + int32_t(left) * 3;
  }
  uint32_t *a = row.taps.data(), *b = a + size, *c = b + size, *d = c + size;
  for (int i = first; i < last; i++) {
    const uint8_t *p = source.pixels + position[i];
    a[i] = load(p);
    b[i] = load(p + 3);
    c[i] = load(p + stride);
    d[i] = load(p + stride + 3);
    __builtin_prefetch(p + ahead);  // outside the image this has no effect
  }
  auto gather_checked = [&](int from, int to) {
    for (int i = from; i < to; i++) {
      int left = int(std::floor(x + step_x * i)), top = int(std::floor(y + step_y * i));
      a[i] = source.checked(left, top);
      b[i] = source.checked(left + 1, top);
      c[i] = source.checked(left, top + 1);
      d[i] = source.checked(left + 1, top + 1);
    }
  };
  gather_checked(0, first);
  gather_checked(last, size);
}

// Stage 3: bilinear weights.
inline void blend(Row &row, int size) {
  const uint32_t *a = row.taps.data(), *b = a + size, *c = b + size, *d = c + size;
  const float *right = row.right.data(), *down = row.down.data();
  for (int channel = 0; channel < 3; channel++) {
    const int shift = 8 * channel;
    float *out = row.rgb.data() + channel * size;
    for (int i = 0; i < size; i++) {
      float upper_left = int32_t(a[i] >> shift & 255), upper_right = int32_t(b[i] >> shift & 255);
      float lower_left = int32_t(c[i] >> shift & 255), lower_right = int32_t(d[i] >> shift & 255);
      float upper = upper_left + (upper_right - upper_left) * right[i];
      float lower = lower_left + (lower_right - lower_left) * right[i];
      out[i] = upper + (lower - upper) * down[i];
    }
  }
}

template <typename T>
inline T convert(float value) {
  return T(value);
}
template <>
inline uint8_t convert<uint8_t>(float value) {
  return uint8_t(int32_t(std::nearbyint(value)));
}

// Stage 4: colour matrix, clip, conversion.
template <typename T>
inline void colour(T *out, const Row &row, int size, const float *m) {
  const float low = sizeof(T) == 1 ? 0 : -1, high = sizeof(T) == 1 ? 255 : 1;
  const float *red = row.rgb.data(), *green = red + size, *blue = green + size;
  for (int i = 0; i < size; i++) {
    for (int c = 0; c < 3; c++) {
      float value = m[4 * c] * red[i] + m[4 * c + 1] * green[i] + m[4 * c + 2] * blue[i] + m[4 * c + 3];
      out[3 * i + c] = convert<T>(std::min(std::max(value, low), high));
    }
  }
}

template <typename T>
void warp_colour(T *out, int size, const Source &source, const float *plan) {
  const float rows_ahead = 8;
  const int32_t ahead = (int32_t(rows_ahead * plan[4]) * source.width + int32_t(rows_ahead * plan[1])) * 3;
  Row row(size);
  for (int y = 0; y < size; y++, out += 3 * size) {
    // From here on positions are measured between pixel centres.
    float start_x = plan[0] * 0.5f + plan[1] * (y + 0.5f) + plan[2] - 0.5f;
    float start_y = plan[3] * 0.5f + plan[4] * (y + 0.5f) + plan[5] - 0.5f;
    gather(row, size, source, start_x, plan[0], start_y, plan[3], ahead);
    blend(row, size);
    colour(out, row, size, plan + 6);
  }
}

class WarpColour : public dali::Operator<dali::CPUBackend> {
 public:
  explicit WarpColour(const dali::OpSpec &spec)
      : Operator(spec),
        size_(spec.GetArgument<int>("size")),
        dtype_(spec.GetArgument<dali::DALIDataType>("dtype")),
        repeat_edges_(spec.GetArgument<bool>("repeat_edges")) {}

 protected:
  bool SetupImpl(std::vector<dali::OutputDesc> &outputs, const dali::Workspace &ws) override {
    int count = ws.Input<dali::CPUBackend>(0).num_samples();
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

}  // namespace kimagenet
