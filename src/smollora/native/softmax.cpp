// The loss of labelled positions and the gradient of their logits, in place, in bfloat16.
//
// What it computes is what train/head.py says of `_to_gradient`, which calls it: three times over a
// line of logits while it lies in a core's cache, in float32, where PyTorch's operators go eight
// times over copies of it.

#include "narrow.h"

using namespace smollora;

namespace {

constexpr int64_t LANES = 16;
constexpr float LEAST = -60.0f * LOG2E;  // as in head.py: subnormal numbers are slow

struct Line {
  bf16* at;
  int64_t count;

  // see(index, which of 16 values are there, the values); those that are not read as -infinity
  template <typename See>
  void each(const See& see) const {
    for (int64_t i = 0; i < count; i += LANES) {
      const __mmask16 there = count - i < LANES ? __mmask16((1u << (count - i)) - 1) : 0xffff;
      const __m256i low = _mm256_set1_epi16(int16_t(0xff80));
      see(i, there, to_floats(_mm256_mask_loadu_epi16(low, there, at + i)));
    }
  }

  float value(int64_t i) const {
    const uint32_t wide = uint32_t(at[i]) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }

  void write(int64_t i, float x) const {
    const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_set1_ps(x));
    at[i] = bf16(_mm256_extract_epi16(low, 0));
  }
};

struct Target {
  int64_t token, refused;
  float weight, word;
};

struct Found {
  float loss, weighted;
  bool hit;
};

Found differentiate(const Line& line, const Target& target) {
  __m512 highest = _mm512_set1_ps(-INFINITY);
  line.each([&](int64_t, __mmask16, __m512 x) { highest = _mm512_max_ps(highest, x); });
  const float top = _mm512_reduce_max_ps(highest), picked = line.value(target.token);
  const __m512 base = _mm512_set1_ps(top * LOG2E), least = _mm512_set1_ps(LEAST);
  const auto power = [&](__m512 x) {  // the second of two that are compared stays if it is NaN
    return exp2_of(_mm512_max_ps(least, _mm512_fmsub_ps(x, _mm512_set1_ps(LOG2E), base)));
  };
  __m512 sum = _mm512_setzero_ps();  // without the refused: what is left of it may be little
  const int64_t place = target.refused % LANES, without = target.refused - place;
  line.each([&](int64_t i, __mmask16 there, __m512 x) {
    const __mmask16 refused = i == without ? __mmask16(1u << place) : 0;
    sum = _mm512_mask_add_ps(sum, there & ~refused, sum, power(x));
  });
  const auto power_of = [&](int64_t i) {
    return _mm512_cvtss_f32(power(_mm512_set1_ps(line.value(i))));
  };
  const float others = _mm512_reduce_add_ps(sum), opened = power_of(target.refused);
  const float total = others + opened, chosen = power_of(target.token);
  const float more = target.weight - target.word;
  const float factor = (target.word - more * opened / others) / total;
  line.each([&](int64_t i, __mmask16 there, __m512 x) {
    const __m512 made = _mm512_mul_ps(power(x), _mm512_set1_ps(factor));
    _mm256_mask_storeu_epi16(line.at + i, there, (__m256i)_mm512_cvtneps_pbh(made));
  });
  const float refusing = target.weight * opened / total;
  if (target.token == target.refused) {
    line.write(target.token, refusing - target.word);
  } else {
    line.write(target.refused, refusing);
    line.write(target.token, chosen * factor - target.word);
  }
  const float loss = std::log(total) + top - picked;
  return {loss, target.word * loss + more * std::log(total / others), picked >= top};
}

}  // namespace

extern "C" {

// sizes: positions, vocabulary, values from a line to the next, threads. Everything but the logits
// [positions] and dense.
void differentiate_logits(const int64_t* sizes, bf16* logits, const int64_t* targets,
                          const int64_t* refused, const float* weights, const float* words,
                          float* losses, float* weighted, bool* hits) {
  const int64_t threads = sizes[3];
  in_parallel(threads, [&](int64_t worker) {
    const FlushTiny flush;
    const Share own(sizes[0], worker, threads);
    for (int64_t i = own.first; i < own.after; ++i) {
      const Line line{logits + i * sizes[2], sizes[1]};
      const Found found = differentiate(line, {targets[i], refused[i], weights[i], words[i]});
      losses[i] = found.loss;
      weighted[i] = found.weighted;
      hits[i] = found.hit;
    }
  });
}

}  // extern "C"
