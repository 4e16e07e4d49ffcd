// Runs the arithmetic of the CPU operator on cases from stdin, without DALI. tests/test_warp_colour.py compiles it with
// AddressSanitizer and UndefinedBehaviorSanitizer. Each buffer has its exact size.
//
// A case: int32 size, height, width, repeat_edges, bytes of an output value (1 or 4); float32 plan [18]; the image.
// The answer: the output.

#include <cstdio>

#include "warp_colour.h"

namespace {

void read(void *data, size_t bytes) {
  if (std::fread(data, 1, bytes, stdin) != bytes) std::exit(2);
}

template <typename T>
void answer(int size, const kimagenet::Source &source, const std::vector<float> &plan) {
  const size_t count = size_t(size) * size * 3;
  T *out = new T[count];
  kimagenet::warp_colour(out, size, source, plan.data());
  std::fwrite(out, sizeof(T), count, stdout);
  std::fflush(stdout);
  delete[] out;
}

}  // namespace

int main() {
  int32_t head[5];
  while (std::fread(head, 1, sizeof head, stdin) == sizeof head) {
    std::vector<float> plan(18);
    read(plan.data(), plan.size() * sizeof(float));
    const size_t bytes = size_t(head[1]) * head[2] * 3;
    uint8_t *pixels = new uint8_t[bytes];
    read(pixels, bytes);
    kimagenet::Source source{pixels, head[1], head[2], head[3] != 0};
    if (head[4] == 1) answer<uint8_t>(head[0], source, plan);
    else answer<float>(head[0], source, plan);
    delete[] pixels;
  }
}
