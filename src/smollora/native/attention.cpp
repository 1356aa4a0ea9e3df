// Attention over packed trees on a CPU in bfloat16, forward and backward, each in one pass.
//
// What it computes is what attention/__init__.py says of `tree_attention` and gradient.py of its
// gradients; attention/kernel.py calls it. Layouts of A, B, C, pairs and panels: units.h.
// Source of the formulas: FlashAttention-2 (Dao 2023, sections 2.3 and 3.1).
//
// A TILE is 32 tokens in a row of all query heads that share a key-value head: `times` heads, so
// `times` CHUNKS of 32 tokens. A BLOCK is 64 keys. Of every tile and block the bounds of the tokens
// say whether nothing, everything or a part is seen: the first is skipped, and only the last needs
// a mask, which is computed from the bounds where it is needed. Tokens of any row and tree may
// meet in a tile; nothing is sorted, gathered or padded but the last tile.
//
// Queries and keys are ROTATED where they are read (Su et al. 2021, in the halves that transformers
// turns), and their gradients back where they are written, if cosines are given.
//
// Scores are computed TRANSPOSED, keys down and tokens across, S^T = K Q^T: 16 tokens lie in a
// vector, so that the largest score and the sum of a token need no reduction across lanes, and the
// weights leave the registers in the form in which the next product wants them.

#include "narrow.h"

#include <vector>

using namespace smollora;

namespace {

constexpr int64_t TILE = LINE;  // tokens
constexpr int64_t BLOCK = 64;  // keys
constexpr int64_t PART = 32;   // keys whose scores are differentiated at once: they stay in L1
constexpr int64_t LANES = 16;  // tokens of a panel
constexpr float LN2 = 0.6931471805599453f;
constexpr float HIDDEN = -1e30f;  // score of a key that is not seen
constexpr float LEAST = -1e25f;   // the largest score before the first: above HIDDEN, so that
                                  // hidden keys weigh nothing even where all so far are hidden

// ---- what is given ---------------------------------------------------------------------------

struct States {  // [heads, length, head_dim] of a tensor whose last dimension is dense
  bf16* at;
  int64_t head, token;  // values from one to the next
  bf16* row(int64_t h, int64_t t) const { return at + h * head + t * token; }
};

struct Rotation {  // by each token's angles [length, WIDE]; null: none
  const bf16 *cosines, *sines;

  // `count` rows of tokens from `first` on, `step` values apart, where they stand; BACK undoes it
  template <int64_t WIDE, bool BACK>
  void turn(bf16* row, int64_t step, int64_t first, int64_t count) const {
    if (!cosines) return;
    constexpr int64_t HALF = WIDE / 2;
    for (int64_t t = first; t < first + count; ++t, row += step) {
      const bf16 *c = cosines + t * WIDE, *s = sines + t * WIDE;
      for (int64_t i = 0; i < HALF; i += LANES) {
        const auto read = [](const bf16* at) {
          return to_floats(_mm256_loadu_si256((const __m256i*)at));
        };
        const auto write = [&](int64_t at, __m512 x) {
          _mm256_storeu_si256((__m256i*)(row + at), (__m256i)_mm512_cvtneps_pbh(x));
        };
        const __m512 low = read(row + i), high = read(row + i + HALF);
        const __m512 a = _mm512_mul_ps(low, read(c + i));
        const __m512 b = _mm512_mul_ps(high, read(c + i + HALF));
        const __m512 upper = read(s + i), lower = read(s + i + HALF);
        write(i, BACK ? _mm512_fmadd_ps(high, lower, a) : _mm512_fnmadd_ps(high, upper, a));
        write(i + HALF, BACK ? _mm512_fnmadd_ps(low, upper, b) : _mm512_fmadd_ps(low, lower, b));
      }
    }
  }
};

struct Sizes {
  int64_t heads, shared_heads, length, wide, lines, threads, rank;
  int64_t times() const { return heads / shared_heads; }
  int64_t tiles() const { return (length + TILE - 1) / TILE; }
  int64_t blocks() const { return (length + BLOCK - 1) / BLOCK; }
  int64_t filled() const { return blocks() * BLOCK; }  // tokens, filled up to whole blocks
};

// 32 tokens from `first` on as they stand, zeros after the last.
template <int64_t WIDE>
void copy_rows(const States& from, int64_t h, int64_t first, int64_t count, int64_t length,
               bf16* to) {
  for (int64_t i = 0; i < count; ++i) {
    if (first + i < length)
      std::memcpy(to + i * WIDE, from.row(h, first + i), WIDE * 2);
    else
      std::memset(to + i * WIDE, 0, WIDE * 2);
  }
}

// 64 dense rows -> their transpose [WIDE, 64].
template <int64_t WIDE>
void turn_block(const bf16* from, bf16* to, const Orders& order) {
  for (int64_t half = 0; half < BLOCK; half += 32) {
    alignas(64) bf16 pairs[2][WIDE / 2][32];
    for (int i = 0; i < 2; ++i) pair_columns(from + (half + i * 16) * WIDE, WIDE, WIDE, &pairs[i][0][0]);
    for (int64_t p = 0; p < WIDE / 2; ++p) {
      const __m512i a = _mm512_load_si512(pairs[0][p]), b = _mm512_load_si512(pairs[1][p]);
      _mm512_storeu_si512(to + (2 * p) * BLOCK + half, _mm512_permutex2var_epi16(a, order.even, b));
      _mm512_storeu_si512(to + (2 * p + 1) * BLOCK + half,
                          _mm512_permutex2var_epi16(a, order.odd, b));
    }
  }
}

// Two panels [WIDE][16] of 32 tokens, each token times a factor (0 where `used` is off) -> rows.
template <int64_t WIDE>
void write_tokens(const float* from, const __m512 (&factor)[2], const __mmask16 (&used)[2],
                  const States& to, int64_t h, int64_t first, int64_t length) {
  for (int p = 0; p < 2; ++p) {
    const int64_t here = std::min<int64_t>(LANES, length - first - p * LANES);
    for (int64_t at = 0; at < WIDE; at += 16) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        const __m512 x = _mm512_load_ps(from + (p * WIDE + at + i) * LANES);
        r[i] = _mm512_castps_si512(_mm512_maskz_mul_ps(used[p], x, factor[p]));
      }
      transpose(r);
      for (int64_t i = 0; i < here; ++i)
        _mm256_storeu_si256((__m256i*)(to.row(h, first + p * LANES + i) + at),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[i])));
    }
  }
}

// ---- what each token sees --------------------------------------------------------------------

struct Piece {  // of a tile's keys
  int32_t block;
  bool whole;  // every token of the tile sees every key
};

struct Plan {
  // token t sees keys [low, low + shared) and [own, own + self)
  std::vector<int32_t> low, shared, own, self;
  std::vector<Piece> pieces;
  std::vector<int64_t> first;  // of a tile's pieces; [tiles + 1]
  std::vector<int64_t> share;  // items (head, tile) of each worker; [workers + 1]

  Plan(const Sizes& sizes, const int64_t* lines) {
    const int64_t tiles = sizes.tiles(), room = tiles * TILE;
    for (auto* each : {&low, &shared, &own, &self}) each->assign(room, 0);
    for (int64_t i = 0; i < sizes.lines; ++i) {
      const int64_t* line = lines + 4 * i;
      for (int64_t t = line[2]; t < line[2] + line[3]; ++t) {
        low[t] = int32_t(line[0]);
        shared[t] = int32_t(line[1]);
        own[t] = int32_t(line[2]);
        self[t] = int32_t(t - line[2] + 1);
      }
    }
    first.push_back(0);
    std::vector<int64_t> cost(tiles);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      int64_t least_key = sizes.length, most_key = 0;
      for (int64_t t = tile * TILE; t < (tile + 1) * TILE; ++t) {
        if (!self[t]) continue;
        least_key = std::min<int64_t>(least_key, shared[t] ? std::min(low[t], own[t]) : own[t]);
        most_key = std::max<int64_t>(most_key, std::max(low[t] + shared[t], own[t] + self[t]));
      }
      for (int64_t block = least_key / BLOCK; block * BLOCK < most_key; ++block) {
        const int32_t from = int32_t(block * BLOCK), to = int32_t(from + BLOCK);
        int32_t most = 0, least = int32_t(BLOCK);
        for (int64_t t = tile * TILE; t < (tile + 1) * TILE; ++t) {
          const int32_t a = std::min(low[t] + shared[t], to) - std::max(low[t], from);
          const int32_t b = std::min(own[t] + self[t], to) - std::max(own[t], from);
          const int32_t seen = std::max(a, 0) + std::max(b, 0);
          most = std::max(most, seen);
          least = std::min(least, seen);
        }
        if (most > 0) pieces.push_back({int32_t(block), least == BLOCK});
      }
      first.push_back(int64_t(pieces.size()));
      cost[tile] = 1 + 2 * (first[tile + 1] - first[tile]);
    }
    int64_t total = 0;
    for (const int64_t each : cost) total += each;
    total *= sizes.shared_heads;
    const int64_t items = sizes.shared_heads * tiles;
    share.push_back(0);
    int64_t done = 0, item = 0;
    for (int64_t worker = 1; worker <= sizes.threads; ++worker) {
      while (item < items && done * sizes.threads < total * worker) done += cost[item++ % tiles];
      share.push_back(worker == sizes.threads ? items : item);
    }
  }
};

struct Mask {  // of the tokens of a tile
  __m512i low[2], shared[2], own[2], self[2];

  Mask(const Plan& plan, int64_t tile) {
    for (int p = 0; p < 2; ++p) {
      const int64_t at = tile * TILE + p * LANES;
      low[p] = _mm512_loadu_si512(&plan.low[at]);
      shared[p] = _mm512_loadu_si512(&plan.shared[at]);
      own[p] = _mm512_loadu_si512(&plan.own[at]);
      self[p] = _mm512_loadu_si512(&plan.self[at]);
    }
  }

  __mmask16 sees(int p, int64_t key) const {  // unsigned: keys before the first are far after
    const __m512i k = _mm512_set1_epi32(int32_t(key));
    return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(k, low[p]), shared[p]) |
           _mm512_cmplt_epu32_mask(_mm512_sub_epi32(k, own[p]), self[p]);
  }

  __mmask16 used(int p) const { return _mm512_test_epi32_mask(self[p], self[p]); }
};

struct Packed {  // keys and values of every key-value head, whole blocks
  bf16 *keys, *values, *turned;  // [filled, WIDE] twice; [blocks][WIDE, 64] of one of them

  Packed(Space& space, const Sizes& sizes) {
    const int64_t all = sizes.shared_heads * sizes.filled() * sizes.wide;
    keys = space.take<bf16>(all);
    values = space.take<bf16>(all);
    turned = space.take<bf16>(all);
  }
};

template <int64_t WIDE>
void pack(const Sizes& sizes, const States& key, const States& value, const Rotation& rotation,
          bool turn_keys, const Packed& to) {
  const int64_t blocks = sizes.blocks(), all = sizes.shared_heads * blocks;
  in_parallel(sizes.threads, [&](int64_t worker) {
    const Orders order = orders();
    const Share own(all, worker, sizes.threads);
    for (int64_t i = own.first; i < own.after; ++i) {
      const int64_t h = i / blocks, first = i % blocks * BLOCK, at = i * BLOCK * WIDE;
      copy_rows<WIDE>(key, h, first, BLOCK, sizes.length, to.keys + at);
      rotation.turn<WIDE, false>(to.keys + at, WIDE, first, std::min(BLOCK, sizes.length - first));
      copy_rows<WIDE>(value, h, first, BLOCK, sizes.length, to.values + at);
      turn_block<WIDE>((turn_keys ? to.keys : to.values) + at, to.turned + at, order);
    }
  });
}

// ---- forward ---------------------------------------------------------------------------------

struct Forward {
  Sizes sizes;
  States query, key, value, out;
  Rotation rotation;
  Rows first;  // [rank, heads * head_dim]: what stands right of `out`, if its heads lie in a row
  float* lse;  // [heads, length]
  const int64_t* lines;
  float scale;
};

struct ForwardRoom {  // of a thread
  bf16 *rows, *query, *weights;  // [32, WIDE]; B of 32 tokens; B [64 keys] of 32 tokens
  float *scores, *out;           // two panels [64][16]; two panels [WIDE][16]

  ForwardRoom(Space& space, const Sizes& sizes) {
    rows = space.take<bf16>(TILE * sizes.wide);
    query = space.take<bf16>(TILE * sizes.wide);
    weights = space.take<bf16>(TILE * BLOCK);
    scores = space.take<float>(TILE * BLOCK);
    out = space.take<float>(TILE * sizes.wide);
  }
};

// Weights of a block from its scores; `largest` and `sum` of each token go on. Where a larger score
// came up, what is summed so far is made less.
template <int64_t WIDE>
void weigh(const ForwardRoom& room, const Piece& piece, const Mask& mask, float factor,
           __m512 (&largest)[2], __m512 (&sum)[2], __m512i pairs) {
  const __m512 c = _mm512_set1_ps(factor);
  for (int p = 0; p < 2; ++p) {
    float* s = room.scores + p * BLOCK * LANES;
    if (!piece.whole) {
      for (int64_t k = 0; k < BLOCK; ++k) {
        const __mmask16 seen = mask.sees(p, piece.block * BLOCK + k);
        const __m512 x = _mm512_load_ps(s + k * LANES);
        _mm512_store_ps(s + k * LANES, _mm512_mask_mov_ps(_mm512_set1_ps(HIDDEN), seen, x));
      }
    }
    __m512 top[4];
    for (int i = 0; i < 4; ++i) top[i] = _mm512_load_ps(s + i * LANES);
    for (int64_t k = 4; k < BLOCK; k += 4)
      for (int i = 0; i < 4; ++i)
        top[i] = _mm512_max_ps(top[i], _mm512_load_ps(s + (k + i) * LANES));
    const __m512 high = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
    const __m512 next = _mm512_max_ps(largest[p], _mm512_mul_ps(high, c));
    if (_mm512_cmp_ps_mask(next, largest[p], _CMP_NEQ_UQ)) {
      const __m512 less = exp2_of(_mm512_sub_ps(largest[p], next));
      sum[p] = _mm512_mul_ps(sum[p], less);
      float* out = room.out + p * WIDE * LANES;
      for (int64_t i = 0; i < WIDE; ++i)
        _mm512_store_ps(out + i * LANES, _mm512_mul_ps(_mm512_load_ps(out + i * LANES), less));
      largest[p] = next;
    }
    __m512 first = _mm512_setzero_ps(), second = _mm512_setzero_ps();
    bf16* to = room.weights + p * BLOCK * LANES;
    for (int64_t k = 0; k < BLOCK; k += 2) {
      const __m512 a = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(s + k * LANES), c, next));
      const __m512 b = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(s + (k + 1) * LANES), c, next));
      first = _mm512_add_ps(first, a);
      second = _mm512_add_ps(second, b);
      _mm512_store_si512(to + k * LANES, _mm512_permutexvar_epi16(pairs, to_bf16(a, b)));
    }
    sum[p] = _mm512_add_ps(sum[p], _mm512_add_ps(first, second));
  }
}

template <int64_t WIDE>
void forward(const Forward& given, char* memory) {
  const Sizes& sizes = given.sizes;
  const Plan plan(sizes, given.lines);
  Space space{memory};
  const Packed packed(space, sizes);
  pack<WIDE>(sizes, given.key, given.value, given.rotation, false, packed);
  std::vector<ForwardRoom> rooms;
  for (int64_t i = 0; i < sizes.threads; ++i) rooms.emplace_back(space, sizes);
  const int64_t tiles = sizes.tiles(), times = sizes.times();
  const float factor = given.scale * LOG2E;

  in_parallel(sizes.threads, [&](int64_t worker) {
    const Units units;
    const FlushTiny flush;
    const ForwardRoom& room = rooms[worker];
    alignas(64) uint16_t places[32];
    for (int i = 0; i < 32; ++i) places[i] = uint16_t(i / 2 + (i % 2) * 16);
    const __m512i pairs = _mm512_load_si512(places);
    for (int64_t item = plan.share[worker]; item < plan.share[worker + 1]; ++item) {
      const int64_t shared_head = item / tiles, tile = item % tiles, token = tile * TILE;
      const Mask mask(plan, tile);
      for (int64_t chunk = 0; chunk < times; ++chunk) {
        const int64_t h = shared_head * times + chunk;
        copy_rows<WIDE>(given.query, h, token, TILE, sizes.length, room.rows);
        given.rotation.turn<WIDE, false>(room.rows, WIDE, token, std::min(TILE, sizes.length - token));
        for (int p = 0; p < 2; ++p)
          pair_columns(room.rows + p * LANES * WIDE, WIDE, WIDE, room.query + p * LANES * WIDE);
        std::memset(room.out, 0, TILE * WIDE * sizeof(float));
        __m512 largest[2], sum[2];
        for (int p = 0; p < 2; ++p) {
          largest[p] = _mm512_set1_ps(LEAST);
          sum[p] = _mm512_setzero_ps();
        }
        for (int64_t i = plan.first[tile]; i < plan.first[tile + 1]; ++i) {
          const Piece piece = plan.pieces[i];
          const int64_t at = (shared_head * sizes.blocks() + piece.block) * BLOCK * WIDE;
          product<false>({packed.keys + at, WIDE, 32}, {room.query, LANES * WIDE},
                         {room.scores, LANES, BLOCK * LANES}, BLOCK / 16, 2, WIDE / 32);
          weigh<WIDE>(room, piece, mask, factor, largest, sum, pairs);
          product<true>({packed.turned + at, BLOCK, 32}, {room.weights, BLOCK * LANES},
                        {room.out, LANES, WIDE * LANES}, WIDE / 16, 2, BLOCK / 32);
        }
        __m512 over[2];
        __mmask16 used[2];
        for (int p = 0; p < 2; ++p) {
          over[p] = _mm512_div_ps(_mm512_set1_ps(1.0f), sum[p]);
          used[p] = mask.used(p);
          alignas(64) float m[LANES], l[LANES];
          _mm512_store_ps(m, largest[p]);
          _mm512_store_ps(l, sum[p]);
          float* to = given.lse + h * sizes.length;
          for (int64_t j = 0, t = token + p * LANES; j < LANES && t < sizes.length; ++j, ++t)
            to[t] = (used[p] >> j) & 1 ? m[j] * LN2 + std::log(l[j]) : 0.0f;
        }
        write_tokens<WIDE>(room.out, over, used, given.out, h, token, sizes.length);
      }
    }
  });

  if (!sizes.rank) return;
  const Rows joined{given.out.at, given.out.token};
  const Narrow narrow(joined, given.first, sizes.length, sizes.heads * WIDE, sizes.rank,
                      sizes.threads, space);
  in_parallel(sizes.threads, [&](int64_t worker) {
    const Units units;
    const FlushTiny flush;
    const Share own(tiles, worker, sizes.threads);
    for (int64_t tile = own.first; tile < own.after; ++tile) narrow.multiply(tile * TILE, worker);
  });
}

// ---- backward --------------------------------------------------------------------------------

struct Backward {
  Sizes sizes;
  States grad, query, key, value, out, d_query, d_key, d_value;
  Rotation rotation;
  const float* lse;
  const int64_t* lines;
  float scale;
};

struct BackwardRoom {  // of a thread; "of the tile": [times] of 32 tokens
  bf16 *rows;                             // [32, WIDE]
  bf16 *query_columns, *grad_columns;     // of the tile, B of Q^T and dO^T
  bf16 *query_rows, *grad_rows;           // B of Q and dO: panels [WIDE / 16] over the tile
  bf16 *weights, *d_scores;               // of the tile, A [64 keys, 32 tokens]
  bf16 *d_pairs;                          // B [64 keys] of 32 tokens
  float *sums, *delta;                    // of the tile
  float *scores, *d_weights;              // two panels [64][16]
  float *d_query;                         // of the tile, two panels [WIDE][16]

  BackwardRoom(Space& space, const Sizes& sizes) {
    const int64_t rows_of = sizes.times() * TILE, all = rows_of * sizes.wide;
    rows = space.take<bf16>(TILE * sizes.wide);
    for (auto* each : {&query_columns, &grad_columns, &query_rows, &grad_rows})
      *each = space.take<bf16>(all);
    weights = space.take<bf16>(rows_of * BLOCK);
    d_scores = space.take<bf16>(rows_of * BLOCK);
    d_pairs = space.take<bf16>(TILE * BLOCK);
    sums = space.take<float>(rows_of);
    delta = space.take<float>(rows_of);
    scores = space.take<float>(TILE * BLOCK);
    d_weights = space.take<float>(TILE * BLOCK);
    d_query = space.take<float>(all);
  }
};

// A tile's queries and upstream gradients in all forms, and of each token lse and sum(dO * O).
template <int64_t WIDE>
void read_tile(const Backward& given, const BackwardRoom& room, int64_t shared_head, int64_t token,
               const Orders& order) {
  const int64_t times = given.sizes.times(), length = given.sizes.length;
  const int64_t panel = times * TILE * LANES;
  for (int64_t chunk = 0; chunk < times; ++chunk) {
    const int64_t h = shared_head * times + chunk, at = chunk * TILE * WIDE;
    for (const bool of_grad : {false, true}) {
      copy_rows<WIDE>(of_grad ? given.grad : given.query, h, token, TILE, length, room.rows);
      if (!of_grad)
        given.rotation.turn<WIDE, false>(room.rows, WIDE, token, std::min(TILE, length - token));
      bf16* columns = (of_grad ? room.grad_columns : room.query_columns) + at;
      for (int p = 0; p < 2; ++p)
        pair_columns(room.rows + p * LANES * WIDE, WIDE, WIDE, columns + p * LANES * WIDE);
      bf16* rows = (of_grad ? room.grad_rows : room.query_rows) + chunk * 512;
      pair_rows(room.rows, WIDE, WIDE, rows, panel, order);
    }
    for (int64_t i = 0; i < TILE; ++i) {  // room.rows holds the gradients
      __m512 sum = _mm512_setzero_ps();
      const bool there = token + i < length;
      for (int64_t j = 0; there && j < WIDE; j += 32)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(room.rows + i * WIDE + j),
                               (__m512bh)_mm512_loadu_si512(given.out.row(h, token + i) + j));
      room.delta[chunk * TILE + i] = _mm512_reduce_add_ps(sum);
      room.sums[chunk * TILE + i] = there ? given.lse[h * length + token + i] * LOG2E : 0.0f;
    }
  }
}

// Scores S^T and dP^T of 32 tokens -> P^T and dS^T as A, dS^T as B.
template <bool WHOLE>
void differentiate(const BackwardRoom& room, int64_t chunk, int64_t block, int64_t first,
                   const Mask& mask, float factor, const Orders& order) {
  const __m512 c = _mm512_set1_ps(factor);
  __m512 sums[2], delta[2];
  for (int p = 0; p < 2; ++p) {
    sums[p] = _mm512_load_ps(room.sums + chunk * TILE + p * LANES);
    delta[p] = _mm512_load_ps(room.delta + chunk * TILE + p * LANES);
  }
  const int64_t key = block * BLOCK + first;
  bf16* to_weights = room.weights + chunk * TILE * BLOCK + first * TILE;
  bf16* to_scores = room.d_scores + chunk * TILE * BLOCK + first * TILE;
  bf16* to_pairs = room.d_pairs + first * LANES;
  for (int64_t k = 0; k < PART; k += 2) {
    __m512i d_rows[2];
    for (int64_t i = 0; i < 2; ++i) {
      __m512 weight[2], d_score[2];
      for (int p = 0; p < 2; ++p) {
        const int64_t at = (p * PART + k + i) * LANES;
        const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(room.scores + at), c, sums[p]);
        weight[p] = exp2_of(x);
        if (!WHOLE) weight[p] = _mm512_maskz_mov_ps(mask.sees(p, key + k + i), weight[p]);
        const __m512 d = _mm512_sub_ps(_mm512_load_ps(room.d_weights + at), delta[p]);
        d_score[p] = _mm512_mul_ps(d, weight[p]);
      }
      d_rows[i] = to_bf16(d_score[0], d_score[1]);
      _mm512_store_si512(to_weights + (k + i) * TILE, to_bf16(weight[0], weight[1]));
      _mm512_store_si512(to_scores + (k + i) * TILE, d_rows[i]);
    }
    _mm512_store_si512(to_pairs + k * LANES,
                       _mm512_permutex2var_epi16(d_rows[0], order.low_pairs, d_rows[1]));
    _mm512_store_si512(to_pairs + (BLOCK + k) * LANES,
                       _mm512_permutex2var_epi16(d_rows[0], order.high_pairs, d_rows[1]));
  }
}

struct Accumulators {  // of a worker: dK and dV of the key-value heads it works at
  int64_t first = 0, heads = 0;
  float *d_keys = nullptr, *d_values = nullptr;
};

template <int64_t WIDE>
void backward(const Backward& given, char* memory) {
  const Sizes& sizes = given.sizes;
  const Plan plan(sizes, given.lines);
  Space space{memory};
  const Packed packed(space, sizes);
  pack<WIDE>(sizes, given.key, given.value, given.rotation, true, packed);
  const int64_t tiles = sizes.tiles(), times = sizes.times(), blocks = sizes.blocks();
  const int64_t one = sizes.filled() * WIDE;  // floats of a head's gradient
  std::vector<BackwardRoom> rooms;
  std::vector<Accumulators> own(sizes.threads);
  for (int64_t i = 0; i < sizes.threads; ++i) {
    rooms.emplace_back(space, sizes);
    if (plan.share[i] == plan.share[i + 1]) continue;
    own[i].first = plan.share[i] / tiles;
    own[i].heads = (plan.share[i + 1] - 1) / tiles - own[i].first + 1;
    own[i].d_keys = space.take<float>(own[i].heads * one);
    own[i].d_values = space.take<float>(own[i].heads * one);
  }
  const float factor = given.scale * LOG2E;

  in_parallel(sizes.threads, [&](int64_t worker) {
    const Units units;
    const FlushTiny flush;
    const Orders order = orders();
    const BackwardRoom& room = rooms[worker];
    const Accumulators& sums = own[worker];
    const int64_t panel = times * TILE * LANES;
    const __m512 scales[2] = {_mm512_set1_ps(given.scale), _mm512_set1_ps(given.scale)};
    const __mmask16 all[2] = {0xffff, 0xffff};
    if (sums.heads) {
      std::memset(sums.d_keys, 0, sums.heads * one * sizeof(float));
      std::memset(sums.d_values, 0, sums.heads * one * sizeof(float));
    }
    for (int64_t item = plan.share[worker]; item < plan.share[worker + 1]; ++item) {
      const int64_t shared_head = item / tiles, tile = item % tiles, token = tile * TILE;
      const Mask mask(plan, tile);
      std::memset(room.d_query, 0, times * TILE * WIDE * sizeof(float));
      if (plan.first[tile] < plan.first[tile + 1])
        read_tile<WIDE>(given, room, shared_head, token, order);
      for (int64_t i = plan.first[tile]; i < plan.first[tile + 1]; ++i) {
        const Piece piece = plan.pieces[i];
        const int64_t at = (shared_head * blocks + piece.block) * BLOCK * WIDE;
        for (int64_t chunk = 0; chunk < times; ++chunk) {
          const int64_t part = chunk * TILE * WIDE;
          const Right queries{room.query_columns + part, LANES * WIDE};
          const Right grads{room.grad_columns + part, LANES * WIDE};
          const Sum scores{room.scores, LANES, PART * LANES};
          const Sum d_weights{room.d_weights, LANES, PART * LANES};
          for (int64_t k = 0; k < BLOCK; k += PART) {
            const int64_t from = at + k * WIDE;
            product<false>({packed.keys + from, WIDE, 32}, queries, scores, PART / 16, 2, WIDE / 32);
            product<false>({packed.values + from, WIDE, 32}, grads, d_weights, PART / 16, 2,
                           WIDE / 32);
            if (piece.whole)
              differentiate<true>(room, chunk, piece.block, k, mask, factor, order);
            else
              differentiate<false>(room, chunk, piece.block, k, mask, factor, order);
          }
          product<true>({packed.turned + at, BLOCK, 32}, {room.d_pairs, BLOCK * LANES},
                        {room.d_query + part, LANES, WIDE * LANES}, WIDE / 16, 2, BLOCK / 32);
        }
        const int64_t to = (shared_head - sums.first) * one + piece.block * BLOCK * WIDE;
        product<true>({room.weights, TILE, TILE * BLOCK}, {room.grad_rows, panel},
                      {sums.d_values + to, WIDE, LANES}, BLOCK / 16, WIDE / 16, times);
        product<true>({room.d_scores, TILE, TILE * BLOCK}, {room.query_rows, panel},
                      {sums.d_keys + to, WIDE, LANES}, BLOCK / 16, WIDE / 16, times);
      }
      for (int64_t chunk = 0; chunk < times; ++chunk) {
        const int64_t h = shared_head * times + chunk;
        write_tokens<WIDE>(room.d_query + chunk * TILE * WIDE, scales, all, given.d_query, h, token,
                           sizes.length);
        given.rotation.turn<WIDE, true>(given.d_query.row(h, token), given.d_query.token, token,
                                        std::min(TILE, sizes.length - token));
      }
    }
  });

  // what the workers found of a head, added in their order
  const int64_t all = sizes.shared_heads * sizes.length;
  in_parallel(sizes.threads, [&](int64_t worker) {
    const FlushTiny flush;
    const __m512 scale = _mm512_set1_ps(given.scale);
    const Share here(all, worker, sizes.threads);
    for (int64_t i = here.first; i < here.after; ++i) {
      const int64_t h = i / sizes.length, t = i % sizes.length;
      for (int64_t at = 0; at < WIDE; at += LANES) {
        __m512 d_key = _mm512_setzero_ps(), d_value = _mm512_setzero_ps();
        for (const Accumulators& sums : own) {
          if (h < sums.first || h >= sums.first + sums.heads) continue;
          const int64_t from = (h - sums.first) * one + t * WIDE + at;
          d_key = _mm512_add_ps(d_key, _mm512_load_ps(sums.d_keys + from));
          d_value = _mm512_add_ps(d_value, _mm512_load_ps(sums.d_values + from));
        }
        d_key = _mm512_mul_ps(d_key, scale);
        _mm256_storeu_si256((__m256i*)(given.d_key.row(h, t) + at),
                            (__m256i)_mm512_cvtneps_pbh(d_key));
        _mm256_storeu_si256((__m256i*)(given.d_value.row(h, t) + at),
                            (__m256i)_mm512_cvtneps_pbh(d_value));
      }
      given.rotation.turn<WIDE, true>(given.d_key.row(h, t), 0, t, 1);
    }
  });
}

Sizes read_sizes(const int64_t* s) { return {s[0], s[1], s[2], s[3], s[4], s[5], s[6]}; }

States read_states(void* const* at, const int64_t* strides, int i) {
  return {static_cast<bf16*>(at[i]), strides[2 * i], strides[2 * i + 1]};
}

bool fits(const Sizes& sizes, const int64_t* lines) {
  for (const int64_t* line = lines; line < lines + 4 * sizes.lines; line += 4)
    for (int i = 0; i < 4; i += 2)
      if (line[i] < 0 || line[i + 1] < 0 || line[i] + line[i + 1] > sizes.length) return false;
  return true;
}

}  // namespace

extern "C" {

// sizes: heads, key-value heads, length, head_dim, lines of the table, threads, rank of the next
// layer's first factor (0: none).
// Bytes that a call needs, from an address that divides by 64.
int64_t count_attention_space(const int64_t* sizes_of, int with_gradients) {
  const Sizes sizes = read_sizes(sizes_of);
  Space space{nullptr};
  Packed(space, sizes);
  for (int64_t i = 0; i < sizes.threads; ++i) {
    if (with_gradients)
      BackwardRoom(space, sizes);
    else
      ForwardRoom(space, sizes);
  }
  if (sizes.rank)
    space.take<char>(Narrow::count_space(sizes.heads * sizes.wide, sizes.rank, sizes.threads));
  // a head is shared by two workers at most where there are no more workers than heads, and each
  // worker begins one head more at most
  if (with_gradients)
    space.take<float>((sizes.shared_heads + sizes.threads) * 2 * sizes.filled() * sizes.wide + 64);
  return space.used;
}

// Both return 1 if the table speaks of tokens that are not there, and compute nothing then. angles:
// cosines and sines, null where nothing is rotated.

// states: query, key, value, out, and with a rank the first factor; strides: (head, token) of each,
// in values; of the factor (0, row).
int attend(const int64_t* sizes_of, void* const* states, const int64_t* strides,
           const bf16* const* angles, float* lse, const int64_t* lines, float scale, char* space) {
  const auto at = [&](int i) { return read_states(states, strides, i); };
  if (!fits(read_sizes(sizes_of), lines)) return 1;
  const Sizes sizes = read_sizes(sizes_of);
  const Rows first = sizes.rank ? Rows{at(4).at, at(4).token} : Rows{nullptr, 0};
  const Forward given{sizes, at(0), at(1), at(2), at(3), {angles[0], angles[1]}, first, lse, lines,
                      scale};
  given.sizes.wide == 64 ? forward<64>(given, space) : forward<128>(given, space);
  return 0;
}

// states: grad, query, key, value, out, d_query, d_key, d_value.
int differentiate_attention(const int64_t* sizes_of, void* const* states, const int64_t* strides,
                            const bf16* const* angles, const float* lse, const int64_t* lines,
                            float scale, char* space) {
  const auto at = [&](int i) { return read_states(states, strides, i); };
  if (!fits(read_sizes(sizes_of), lines)) return 1;
  const Backward given{read_sizes(sizes_of), at(0), at(1), at(2), at(3), at(4), at(5), at(6),
                       at(7),                {angles[0], angles[1]}, lse, lines, scale};
  given.sizes.wide == 64 ? backward<64>(given, space) : backward<128>(given, space);
  return 0;
}

}  // extern "C"
