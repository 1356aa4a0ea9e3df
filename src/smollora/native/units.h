// What the kernels of this folder share: threads, products, vectors, space.
//
// Nothing here includes a header of PyTorch: kernels take plain pointers, and the threads are those
// PyTorch already has (`set_threads`, units.cpp). native/__init__.py compiles them.
//
// Layouts. The matrix units multiply A [16, 32] by B [32, 16] into C [16, 16] of float32:
//   A: 16 rows of 32 values, 64 bytes each, any distance apart;
//   B: PAIRS: 16 lines of 64 bytes; line p holds, for 16 columns, the values of rows 2p and 2p + 1;
//   C: 16 rows of 16 floats, any distance apart.
// A PANEL is 16 columns: of B [rows / 2][16][2], of C [rows][16]; panels follow each other.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace smollora {

using bf16 = uint16_t;

constexpr float LOG2E = 1.4426950408889634f;

// ---- threads ---------------------------------------------------------------------------------

using Start = void (*)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
using Count = int (*)();

inline Start start_threads = nullptr;
inline Count thread_number = nullptr;
inline Count thread_count = nullptr;

template <typename Work>
struct Shared {
  const Work* work;
  int64_t workers;
};

template <typename Work>
void run_share(void* given) {
  auto& shared = *static_cast<Shared<Work>*>(given);
  // a nested call gets one thread: it does the work of all, so that results do not change
  for (int64_t worker = thread_number(); worker < shared.workers; worker += thread_count())
    (*shared.work)(worker);
}

// work(0) ... work(workers - 1), each once, on as many threads of PyTorch's own.
template <typename Work>
void in_parallel(int64_t workers, const Work& work) {
  if (workers > 1 && start_threads) {
    Shared<Work> shared{&work, workers};
    start_threads(run_share<Work>, &shared, unsigned(workers), 0);
  } else {
    for (int64_t worker = 0; worker < workers; ++worker) work(worker);
  }
}

// ---- products --------------------------------------------------------------------------------

struct Left {  // A
  const bf16* at;
  int64_t row;    // values from a row to the next
  int64_t chunk;  // values from 32 columns to the next 32
};

struct Right {  // B, in pairs
  const bf16* at;
  int64_t panel;  // values from a panel to the next; 32 rows are always 512 values
};

struct Sum {  // C
  float* at;
  int64_t row;
  int64_t panel;
};

#ifdef SMOLLORA_AMX

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Units {  // holds the matrix units of a thread
  Units() {
    TileShapes shapes;
    asm volatile("" ::: "memory");
    _tile_loadconfig(&shapes);
  }
  ~Units() { _tile_release(); }
};

// C (+)= A B for 16 * m by 16 * n by 32 * k; n even.
template <bool ADD>
void product(Left a, Right b, Sum c, int64_t m, int64_t n, int64_t k) {
  asm volatile("" ::: "memory");  // what loads tiles does not say that it reads memory
  const int64_t a_row = a.row * 2, c_row = c.row * 4;
  for (int64_t i = 0; i < m; i += 2) {
    const bool both = i + 1 < m;
    for (int64_t j = 0; j < n; j += 2) {
      float* c00 = c.at + i * 16 * c.row + j * c.panel;
      float* c10 = c00 + 16 * c.row;
      if (ADD) {
        _tile_loadd(0, c00, c_row);
        _tile_loadd(1, c00 + c.panel, c_row);
        if (both) {
          _tile_loadd(2, c10, c_row);
          _tile_loadd(3, c10 + c.panel, c_row);
        }
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const bf16* left = a.at + i * 16 * a.row;
      const bf16* right = b.at + j * b.panel;
      for (int64_t step = 0; step < k; ++step) {
        _tile_loadd(4, left, a_row);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + b.panel, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (both) {
          _tile_loadd(5, left + 16 * a.row, a_row);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        left += a.chunk;
        right += 512;
      }
      _tile_stored(0, c00, c_row);
      _tile_stored(1, c00 + c.panel, c_row);
      if (both) {
        _tile_stored(2, c10, c_row);
        _tile_stored(3, c10 + c.panel, c_row);
      }
    }
  }
  asm volatile("" ::: "memory");
}

#else  // vectors that multiply pairs (AVX512-BF16)

struct Units {
  Units() {}
  ~Units() {}
};

template <bool ADD>
void product(Left a, Right b, Sum c, int64_t m, int64_t n, int64_t k) {
  for (int64_t i = 0; i < m * 2; ++i) {
    for (int64_t j = 0; j < n; j += 2) {
      float* to = c.at + i * 8 * c.row + j * c.panel;
      __m512 sums[8][2];
      for (int r = 0; r < 8; ++r)
        for (int p = 0; p < 2; ++p)
          sums[r][p] =
              ADD ? _mm512_loadu_ps(to + r * c.row + p * c.panel) : _mm512_setzero_ps();
      for (int64_t step = 0; step < k; ++step) {
        const bf16* left = a.at + i * 8 * a.row + step * a.chunk;
        const bf16* right = b.at + j * b.panel + step * 512;
        for (int64_t pair = 0; pair < 16; ++pair) {
          const auto first = (__m512bh)_mm512_loadu_si512(right + pair * 32);
          const auto second = (__m512bh)_mm512_loadu_si512(right + b.panel + pair * 32);
          for (int r = 0; r < 8; ++r) {
            int32_t two;
            std::memcpy(&two, left + r * a.row + pair * 2, 4);
            const auto both = (__m512bh)_mm512_set1_epi32(two);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, first);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, second);
          }
        }
      }
      for (int r = 0; r < 8; ++r)
        for (int p = 0; p < 2; ++p) _mm512_storeu_ps(to + r * c.row + p * c.panel, sums[r][p]);
    }
  }
}

#endif

// ---- vectors ---------------------------------------------------------------------------------

// 2^x within 4e-6 (a bfloat16 is exact to 2e-3); 0 where x is very low; NaN stays.
inline __m512 exp2_of(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(1.3534167e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.2011464e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4144275e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9300383e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000026f));
  return _mm512_scalef_ps(p, x);
}

inline __m512 to_floats(__m256i x) {  // 16 bfloat16
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

struct Orders {  // of 16-bit values of two vectors
  __m512i low_pairs, high_pairs, even, odd;
};

inline Orders orders() {
  alignas(64) uint16_t low[32], high[32], even[32], odd[32];
  for (int i = 0; i < 32; ++i) {
    low[i] = uint16_t(i / 2 + (i % 2) * 32);
    high[i] = uint16_t(16 + i / 2 + (i % 2) * 32);
    even[i] = uint16_t(2 * i);
    odd[i] = uint16_t(2 * i + 1);
  }
  return {_mm512_load_si512(low), _mm512_load_si512(high), _mm512_load_si512(even),
          _mm512_load_si512(odd)};
}

// 16 vectors of 16 32-bit values, transposed.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
  }
}

// 16 rows of `wide` values, `row` values apart -> a panel of B of their transpose: [wide / 2][16][2].
inline void pair_columns(const bf16* from, int64_t row, int64_t wide, bf16* to) {
  for (int64_t at = 0; at < wide; at += 32) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * row + at);
    transpose(r);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (at / 2 + i) * 32, r[i]);
  }
}

// 32 rows of `wide` values, `row` values apart -> panels of B [wide / 16][.., 16 pairs][16][2],
// `panel` values apart.
inline void pair_rows(const bf16* from, int64_t row, int64_t wide, bf16* to, int64_t panel,
                      const Orders& order) {
  for (int64_t pair = 0; pair < 16; ++pair) {
    for (int64_t at = 0; at < wide; at += 32) {
      const __m512i a = _mm512_loadu_si512(from + 2 * pair * row + at);
      const __m512i b = _mm512_loadu_si512(from + (2 * pair + 1) * row + at);
      bf16* line = to + at / 16 * panel + pair * 32;
      _mm512_storeu_si512(line, _mm512_permutex2var_epi16(a, order.low_pairs, b));
      _mm512_storeu_si512(line + panel, _mm512_permutex2var_epi16(a, order.high_pairs, b));
    }
  }
}

// ---- space: given by the caller, cut up here -----------------------------------------------

struct Space {
  char* at;
  int64_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(at + used);
    used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return found;
  }
};

struct FlushTiny {  // numbers below 1e-38 count as 0: computing with them is slow
  unsigned before = _mm_getcsr();
  FlushTiny() { _mm_setcsr(before | 0x8040); }
  ~FlushTiny() { _mm_setcsr(before); }
};

}  // namespace smollora
