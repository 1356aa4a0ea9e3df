// The gate of a feed-forward layer on a CPU in bfloat16, h = silu(gate) * up, forward and backward, with
// LoRA's narrow products beside it.
//
// A product with a side of 16 to 48 is bound by reading its wide side, and so is the gate. Here the wide
// matrices are read once: h times the next layer's first factor, and the gradients of the three factors
// that meet the gate, are made of values that are at hand anyway. What it computes is what train/gate.py
// says; which calls it. Layouts of A, B, C, pairs and panels: units.h.
//
// Sums over tokens are shared out by columns, so that no result depends on the number of threads.

#include "narrow.h"

using namespace smollora;

namespace {

constexpr int64_t STRIP = 256;  // columns of a token that are computed in a row: memory is fetched ahead
constexpr int64_t AHEAD = 4;    // tokens
constexpr int64_t DEEP = 64;  // tokens that are summed before a sum goes back to memory

// narrow [length, rank] -> its transpose [rank, length], rank filled up to 16s, zeros up to `filled`
void turn(const Rows& narrow, int64_t length, int64_t rank, int64_t filled, bf16* to) {
  for (int64_t r = 0; r < rank; r += 16) {
    const __mmask16 there = __mmask16((1u << std::min<int64_t>(16, rank - r)) - 1);
    for (int64_t t = 0; t < filled; t += 16) {
      __m512i lines[16];
      for (int64_t i = 0; i < 16; ++i)
        lines[i] = t + i < length ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(
                                        there, narrow.row(t + i) + r))
                                  : _mm512_setzero_si512();
      transpose(lines);
      for (int64_t i = 0; i < 16; ++i)
        _mm256_storeu_si256((__m256i*)(to + (r + i) * filled + t), _mm512_cvtepi32_epi16(lines[i]));
    }
  }
}

// of 32 values, as floats
inline __m512 low_half(__m512i x) { return to_floats(_mm512_castsi512_si256(x)); }
inline __m512 high_half(__m512i x) { return to_floats(_mm512_extracti64x4_epi64(x, 1)); }

// 1 / (1 + e^-x) within 4e-6 of itself (exp2_of) where float32 holds it; NaN stays.
inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
  // the smaller, or the second where one is NaN; e^-x stays finite
  const __m512 power = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(x, _mm512_set1_ps(-LOG2E)));
  const __m512 sum = _mm512_add_ps(one, exp2_of(power));
  const __m512 guess = _mm512_rcp14_ps(sum);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(sum, guess, two));
}

// ---- the gate, forward ---------------------------------------------------------------------------

struct Gate {
  int64_t length, inner, rank, threads;
  Rows gate_up;  // [length, 2 * inner]
  Rows first;    // [rank, inner], the next layer's first factor
  Rows joined;   // [length, inner + rank]: h, and h first'
};

void gate(const Gate& given, char* memory) {
  Space space{memory};
  const int64_t inner = given.inner;
  const Narrow narrow(given.joined, given.first, given.length, inner, given.rank, given.threads, space);
  in_parallel(given.threads, [&](int64_t worker) {
    const Units units;
    const FlushTiny flush;
    const Share share(whole(given.length, LINE) / LINE, worker, given.threads);
    for (int64_t t = share.first * LINE; t < share.after * LINE; t += LINE) {
      const int64_t here = std::min(LINE, given.length - t);
      for (int64_t i = 0; i < here; ++i) {
        const bf16 *g = given.gate_up.row(t + i), *u = g + inner;
        bf16* to = given.joined.row(t + i);
        for (int64_t c = 0; c < inner; c += 32) {
          const __m512i gs = _mm512_loadu_si512(g + c), us = _mm512_loadu_si512(u + c);
          __m512 h[2] = {low_half(gs), high_half(gs)};
          h[0] = _mm512_mul_ps(_mm512_mul_ps(h[0], sigmoid(h[0])), low_half(us));
          h[1] = _mm512_mul_ps(_mm512_mul_ps(h[1], sigmoid(h[1])), high_half(us));
          _mm512_storeu_si512(to + c, to_bf16(h[0], h[1]));
        }
      }
      narrow.multiply(t, worker);
    }
  });
}

// ---- the gate, backward --------------------------------------------------------------------------

struct GateBackward {
  int64_t length, inner, rank, low_rank, threads;
  Rows d_joined;   // [length, inner + rank]
  Rows gate_up;    // [length, 2 * inner]
  Rows first;      // [rank, inner]
  Rows low;        // [length, 2 * low_rank]: what the gate's and the other layer's second factors got
  Rows d_gate_up;  // [length, 2 * inner], from an address that divides by 64
  float* d_first;   // [rank filled up to 16s, inner]
  float* d_second;  // [2, low_rank filled up to 16s, inner]: transposed, without the scale
};

struct Made {  // of 32 columns of a token
  __m512i d_gate, d_up, h;
};

inline Made differentiate(__m512i g, __m512i u, __m512i d_h, const float* more) {
  __m512 d_gate[2], d_up[2], h[2];
  for (int i = 0; i < 2; ++i) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 x = i ? high_half(g) : low_half(g), y = i ? high_half(u) : low_half(u);
    const __m512 d = _mm512_add_ps(i ? high_half(d_h) : low_half(d_h), _mm512_load_ps(more + i * 16));
    const __m512 s = sigmoid(x), silu = _mm512_mul_ps(x, s);
    h[i] = _mm512_mul_ps(silu, y);
    d_up[i] = _mm512_mul_ps(d, silu);
    // silu' = s (1 + x (1 - s)) = s + silu (1 - s)
    const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
    d_gate[i] = _mm512_mul_ps(_mm512_mul_ps(d, y), slope);
  }
  return {to_bf16(d_gate[0], d_gate[1]), to_bf16(d_up[0], d_up[1]), to_bf16(h[0], h[1])};
}

void gate_backward(const GateBackward& given, char* memory) {
  Space space{memory};
  const int64_t filled = whole(given.length, DEEP), inner = given.inner;
  const int64_t ranks = whole(given.rank, 32), low_ranks = whole(given.low_rank, 16);
  const bf16* factor = fill_rows(given.first, given.rank, ranks, inner, space);
  bf16* panels = space.take<bf16>(ranks * inner);  // of B
  bf16* d_low_turned = space.take<bf16>(ranks * filled);
  bf16* lows[2] = {space.take<bf16>(low_ranks * filled), space.take<bf16>(low_ranks * filled)};
  for (int64_t r = 0; r < ranks; r += 32)
    pair_rows(factor + r * inner, inner, inner, panels + r * 16, ranks * 16, orders());
  const Rows d_lows{given.d_joined.at + inner, given.d_joined.step};
  const bf16* d_low = fill_rows(d_lows, given.length, filled, given.rank, space, ranks);
  turn(d_lows, given.length, given.rank, filled, d_low_turned);
  for (int i = 0; i < 2; ++i)
    turn({given.low.at + i * given.low_rank, given.low.step}, given.length, given.low_rank,
         filled, lows[i]);
  float* mores = space.take<float>(given.threads * LINE * STRIP);
  bf16* paired = space.take<bf16>(given.threads * 3 * STRIP * DEEP);

  in_parallel(given.threads, [&](int64_t worker) {
    const Units units;
    const FlushTiny flush;
    const Orders order = orders();
    float* more = mores + worker * LINE * STRIP;  // what comes through the first factor
    bf16* pairs[3];                               // of d_gate, d_up, h: panels
    for (int k = 0; k < 3; ++k) pairs[k] = paired + (worker * 3 + k) * STRIP * DEEP;
    const Share share(inner / LINE, worker, given.threads);
    const int64_t after = share.after * LINE;
    for (int64_t t = 0; t < given.length; t += DEEP) {
      const int64_t here = std::min(DEEP, given.length - t);
      for (int64_t from = share.first * LINE; from < after; from += STRIP) {
        const int64_t wide = std::min(STRIP, after - from);
        for (int64_t i = 0; i < DEEP; i += 2) {
          if (i % LINE == 0)
            product<false>({d_low + (t + i) * ranks, ranks, 32},
                           {panels + from * ranks, ranks * 16}, {more, STRIP, 16}, 2, wide / 16,
                           ranks / 32);
          for (int64_t c = 0; c < wide; c += LINE) {
            Made made[2];
            for (int j = 0; j < 2; ++j) {
              if (i + j >= here) {
                made[j] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
                continue;
              }
              const bf16* g = given.gate_up.row(t + i + j) + from + c;
              const bf16* d = given.d_joined.row(t + i + j) + from + c;
              bf16* to = given.d_gate_up.row(t + i + j) + from + c;
              if (i + j + AHEAD < here) {
                _mm_prefetch(g + AHEAD * given.gate_up.step, _MM_HINT_T0);
                _mm_prefetch(g + inner + AHEAD * given.gate_up.step, _MM_HINT_T0);
                _mm_prefetch(d + AHEAD * given.d_joined.step, _MM_HINT_T0);
              }
              made[j] = differentiate(_mm512_loadu_si512(g), _mm512_loadu_si512(g + inner),
                                      _mm512_loadu_si512(d), more + (i + j) % LINE * STRIP + c);
              // past the caches: what is there before is not read, and nobody needs this soon
              _mm512_stream_si512((__m512i*)to, made[j].d_gate);
              _mm512_stream_si512((__m512i*)(to + inner), made[j].d_up);
            }
            const __m512i each[3][2] = {{made[0].d_gate, made[1].d_gate},
                                        {made[0].d_up, made[1].d_up},
                                        {made[0].h, made[1].h}};
            for (int k = 0; k < 3; ++k) {
              bf16* line = pairs[k] + c * DEEP + i * 16;
              _mm512_store_si512(
                  line, _mm512_permutex2var_epi16(each[k][0], order.low_pairs, each[k][1]));
              _mm512_store_si512(
                  line + 16 * DEEP,
                  _mm512_permutex2var_epi16(each[k][0], order.high_pairs, each[k][1]));
            }
          }
        }
        const auto add = [&](const bf16* left, int k, float* to, int64_t rows) {
          const Left a{left + t, filled, LINE};
          const Right b{pairs[k], DEEP * 16};
          const Sum sum{to + from, inner, 16};
          if (t == 0)
            product<false>(a, b, sum, rows / 16, wide / 16, DEEP / 32);
          else
            product<true>(a, b, sum, rows / 16, wide / 16, DEEP / 32);
        };
        add(lows[0], 0, given.d_second, low_ranks);
        add(lows[1], 1, given.d_second + low_ranks * inner, low_ranks);
        add(d_low_turned, 2, given.d_first, whole(given.rank, 16));
      }
    }
    _mm_sfence();
  });
}

Rows rows(void* const* at, const int64_t* steps, int i) {
  return {static_cast<bf16*>(at[i]), steps[i]};
}

}  // namespace

extern "C" {

// Bytes that either call needs, from an address that divides by 64; the larger of two ranks.
int64_t count_gate_space(int64_t length, int64_t inner, int64_t rank, int64_t threads) {
  const int64_t filled = whole(length, DEEP), ranks = whole(rank, 32);
  const int64_t backward = 2 * (2 * ranks * inner + 4 * filled * ranks + threads * 3 * STRIP * DEEP) +
                           4 * threads * LINE * STRIP + 64 * 10;
  return std::max(backward, Narrow::count_space(inner, rank, threads));
}

// sizes: length, inner, rank, threads. states: gate_up, first, joined.
void apply_gate(const int64_t* s, void* const* at, const int64_t* steps, char* space) {
  gate({s[0], s[1], s[2], s[3], rows(at, steps, 0), rows(at, steps, 1), rows(at, steps, 2)}, space);
}

// sizes: length, inner, rank, low_rank, threads. states: d_joined, gate_up, first, low, d_gate_up.
void differentiate_gate(const int64_t* s, void* const* at, const int64_t* steps, float* d_first,
                        float* d_second, char* space) {
  const auto of = [&](int i) { return rows(at, steps, i); };
  gate_backward({s[0], s[1], s[2], s[3], s[4], of(0), of(1), of(2), of(3), of(4), d_first, d_second},
                space);
}

}  // extern "C"
