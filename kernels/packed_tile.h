// A few rows times a panel of weights, in registers: the inside of a product on a CPU with AVX-512
// and its bfloat16 dot product.
//
// A unit is 32 bits of a row: two bfloat16 or one float32. A panel is the weights of 32 outputs,
// unit by unit. A tile is up to 14 rows, unit by unit too.

#pragma once

#include <immintrin.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

namespace rlvr_decode {

using torch::headeronly::BFloat16;

constexpr int kLanes = 16;
constexpr int kPanel = 2 * kLanes;
constexpr int kTile = 14;  // rows; times 2 vectors: sums fill 28 of 32 registers

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What an element type makes of a unit.
template <typename T>
struct Unit;

template <>
struct Unit<BFloat16> {
  static constexpr int64_t elements = 2;
  static __m512 dot(__m512 sum, __m512i x, __m512i w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
  static void store(BFloat16* to, __mmask16 mask, __m512 values) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
  }
};

template <>
struct Unit<float> {
  static constexpr int64_t elements = 1;
  static __m512 dot(__m512 sum, __m512i x, __m512i w) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum);
  }
  static void store(float* to, __mmask16 mask, __m512 values) {
    _mm512_mask_storeu_ps(to, mask, values);
  }
};

// total [ROWS, kPanel] += x [units, ROWS] · w [units, kPanel], while LINES cache lines a unit are
// fetched from `next` on.
template <typename T, int LINES, int ROWS>
void accumulate(float* total, const uint32_t* x, const uint32_t* w, int64_t units,
                const uint32_t* next) {
  __m512 sums[ROWS][2] = {};
  for (int64_t unit = 0; unit < units; ++unit) {
#pragma GCC unroll 2
    for (int line = 0; line < LINES; ++line, next += kLanes) _mm_prefetch(next, _MM_HINT_T1);
    const __m512i left = _mm512_loadu_si512(w), right = _mm512_loadu_si512(w + kLanes);
#pragma GCC unroll 14
    for (int row = 0; row < ROWS; ++row) {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(x[row]));
      sums[row][0] = Unit<T>::dot(sums[row][0], value, left);
      sums[row][1] = Unit<T>::dot(sums[row][1], value, right);
    }
    x += ROWS;
    w += kPanel;
  }
#pragma GCC unroll 14
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) {
      float* to = total + row * kPanel + half * kLanes;
      _mm512_storeu_ps(to, _mm512_loadu_ps(to) + sums[row][half]);
    }
}

using Accumulate = void (*)(float*, const uint32_t*, const uint32_t*, int64_t, const uint32_t*);

template <typename T, int LINES, int... ROWS>
constexpr std::array<Accumulate, kTile> by_rows(std::integer_sequence<int, ROWS...>) {
  return {accumulate<T, LINES, ROWS + 1>...};
}

// `accumulate` by lines and by rows less one.
template <typename T, typename Rows = std::make_integer_sequence<int, kTile>>
constexpr std::array<std::array<Accumulate, kTile>, 3> kAccumulate = {
    by_rows<T, 0>(Rows{}), by_rows<T, 1>(Rows{}), by_rows<T, 2>(Rows{})};

// Things cut into as few parts as there can be of at most `most`, of nearly one size.
struct Parts {
  int64_t things, most;
  int64_t count = ceil_div(things, most);
  int64_t first(int64_t part) const { return things * part / count; }
  int64_t size(int64_t part) const { return first(part + 1) - first(part); }
};

// to [columns, rows] = from [rows, columns], at most 16 of each; rows of `from` are `stride` apart.
inline void transpose(uint32_t* to, const uint32_t* from, int64_t stride, int64_t rows,
                      int64_t columns) {
  const __mmask16 columns_mask = (1u << columns) - 1, rows_mask = (1u << rows) - 1;
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i)
    a[i] = i < rows ? _mm512_maskz_loadu_epi32(columns_mask, from + i * stride)
                    : _mm512_setzero_si512();
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    a[j] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88);
    a[j + 8] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd);
  }
  for (int i = 0; i < columns; ++i) _mm512_mask_storeu_epi32(to + i * rows, rows_mask, a[i]);
}

}  // namespace rlvr_decode
