// A layer's input times its first factor, written beside the input, where the layer's product reads both.
//
// A product with a side of 16 to 64 is bound by reading the other: whoever makes the input does this while
// it is at hand. Layouts of A, B, C, pairs and panels: units.h.

#pragma once

#include "units.h"

namespace smollora {

constexpr int64_t LINE = 32;  // tokens, and columns, that are computed at once

inline int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

struct Rows {  // [rows, columns] with dense columns
  bf16* at;
  int64_t step;  // values from a row to the next
  bf16* row(int64_t i) const { return at + i * step; }
};

struct Share {  // what one worker does of `count` pieces
  int64_t first, after;
  Share(int64_t count, int64_t worker, int64_t workers)
      : first(count * worker / workers), after(count * (worker + 1) / workers) {}
};

// `count` rows of `columns` values -> `filled` dense rows of `wide` (0: as many) values, zeros around
inline bf16* fill_rows(const Rows& from, int64_t count, int64_t filled, int64_t columns, Space& space,
                int64_t wide = 0) {
  if (!wide) wide = columns;
  bf16* to = space.take<bf16>(filled * wide);
  std::memset(to, 0, size_t(filled * wide * 2));
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(to + i * wide, from.row(i), size_t(columns * 2));
  return to;
}

// joined [length, inner + rank]: of 32 tokens, what stands right, joined[:, :inner] first'.
struct Narrow {
  int64_t length, inner, rank, ranks;
  Rows joined;
  bf16 *panels, *tails;  // B of first'; of each worker's last tokens, zeros after
  float* sums;           // of each worker

  // first [rank, inner]; inner a multiple of 32
  Narrow(const Rows& joined, const Rows& first, int64_t length, int64_t inner, int64_t rank,
         int64_t threads, Space& space)
      : length(length), inner(inner), rank(rank), ranks(whole(rank, 32)), joined(joined) {
    const bf16* factor = fill_rows(first, rank, ranks, inner, space);
    panels = space.take<bf16>(ranks * inner);
    for (int64_t r = 0; r < ranks; r += 16)
      pair_columns(factor + r * inner, inner, inner, panels + r * inner);
    sums = space.take<float>(threads * LINE * ranks);
    tails = space.take<bf16>(threads * LINE * inner);
  }

  static int64_t count_space(int64_t inner, int64_t rank, int64_t threads) {
    const int64_t ranks = whole(rank, 32);
    return 2 * (2 * ranks * inner + threads * LINE * inner) + 4 * threads * LINE * ranks + 64 * 4;
  }

  // tokens [t, t + 32), t a multiple of 32, by a worker that holds the units
  void multiply(int64_t t, int64_t worker) const {
    const int64_t here = std::min(LINE, length - t);
    float* low = sums + worker * LINE * ranks;
    Left left{joined.row(t), joined.step, LINE};
    if (here < LINE) {
      bf16* tail = tails + worker * LINE * inner;
      std::memset(tail, 0, size_t(LINE * inner * 2));
      for (int64_t i = 0; i < here; ++i)
        std::memcpy(tail + i * inner, joined.row(t + i), size_t(inner * 2));
      left = {tail, inner, LINE};
    }
    product<false>(left, {panels, inner * 16}, {low, ranks, 16}, 2, ranks / 16, inner / 32);
    for (int64_t i = 0; i < here; ++i) {
      alignas(64) bf16 values[64];
      for (int64_t r = 0; r < ranks; r += 32)
        _mm512_store_si512(values + r, to_bf16(_mm512_loadu_ps(low + i * ranks + r),
                                               _mm512_loadu_ps(low + i * ranks + r + 16)));
      std::memcpy(joined.row(t + i) + inner, values, size_t(rank * 2));
    }
  }
};

}  // namespace smollora
