// A linear layer of both models of an adapter pair, on a CPU with AVX-512 and its bfloat16 dot
// product: y = W x + bias for every row, less B (A x) for base's, which are the second half.
//
// W and -B lie side by side in memory as panels of 32 outputs. A product reads them from one end to
// the other, once, and fetches the next panel while it computes this one: decoding a few rows waits
// for memory, and a second model's rows ride along. A row is summed in one order whatever its
// batch, and a block of inputs at a time, so that float32 loses little.
//
// Legend: N rows, I inputs, O outputs, R summed rank; units, tiles and panels are packed_tile.h's.

#include <omp.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "packed_tile.h"

namespace rlvr_decode {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBatch = 16;       // tiles that stay in the second-level cache
constexpr int kAlone = 8;        // tiles of a thread that are worth reading the weight for
constexpr int64_t kBlock = 384;  // units that are summed before they are added to the total

template <typename T>
class Product {
 public:
  Product(const Tensor& x, const Tensor& weight, const Tensor* down, const Tensor* bias,
          Tensor& out)
      : x_(units_of(x)),
        weight_(units_of(weight)),
        down_(down ? units_of(*down) : nullptr),
        bias_(bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr),
        out_(static_cast<T*>(out.mutable_data_ptr())),
        outputs_(out.size(1)),
        panels_(weight.size(0)),
        panel_units_(weight.size(1)),
        down_panels_(down ? down->size(0) : 0),
        units_(x.size(1) / Unit<T>::elements),
        row_units_(units_ + (down ? panel_units_ - units_ : 0)),
        tiles_{x.size(0), kTile} {}

  void run() {
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    if (tiles_.count < kAlone * threads)
      together(threads);
    else
      alone(threads);
  }

 private:
  // Few rows: the threads share the panels, each of which is read from memory by one of them.
  void together(int threads) {
    const Parts batches{tiles_.count, kBatch};
    const int64_t pieces = ceil_div(units_, kLanes);
    uint32_t* packed = scratch(tiles_.things);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t item = 0; item < tiles_.count * pieces; ++item)
        pack(packed, item / pieces, item % pieces);
      if (down_) {
#pragma omp for schedule(static)
        for (int64_t item = 0; item < tiles_.count * down_panels_; ++item)
          shift(packed, item / down_panels_, item % down_panels_);
      }
      const int64_t items = batches.count * panels_, thread = omp_get_thread_num();
      const int64_t present = omp_get_num_threads();
      for (int64_t item = items * thread / present; item < items * (thread + 1) / present; ++item) {
        const int64_t batch = item / panels_;
        multiply(packed, batches.first(batch), batches.size(batch), item % panels_);
      }
    }
  }

  // Many rows: each thread has batches of its own, which stay in its cache from first to last.
  void alone(int threads) {
    const int64_t even = ceil_div(ceil_div(tiles_.count, kBatch), threads) * threads;
    const Parts batches{tiles_.count, ceil_div(tiles_.count, even)};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t batch = 0; batch < batches.count; ++batch) {
      const int64_t begin = batches.first(batch), tiles = batches.size(batch);
      const int64_t first = tiles_.first(begin);
      // So that a tile is found where it would be if all rows were packed.
      uint32_t* packed = scratch(tiles_.first(begin + tiles) - first) - first * row_units_;
      for (int64_t tile = begin; tile < begin + tiles; ++tile) {
        for (int64_t piece = 0; piece < ceil_div(units_, kLanes); ++piece)
          pack(packed, tile, piece);
        for (int64_t panel = 0; panel < down_panels_; ++panel) shift(packed, tile, panel);
      }
      for (int64_t panel = 0; panel < panels_; ++panel) multiply(packed, begin, tiles, panel);
    }
  }

  // Room for packed rows, kept from call to call: fresh memory would cost more than its use.
  uint32_t* scratch(int64_t rows) const {
    static thread_local std::vector<uint32_t> kept;
    if (kept.size() < static_cast<size_t>(rows * row_units_)) kept.resize(rows * row_units_);
    return kept.data();
  }

  static const uint32_t* units_of(const Tensor& tensor) {
    return static_cast<const uint32_t*>(tensor.const_data_ptr());
  }

  // A tile's inputs, then its A x, both [units, height].
  uint32_t* tile_at(uint32_t* packed, int64_t tile) const {
    return packed + tiles_.first(tile) * row_units_;
  }

  bool has_base(int64_t tile) const { return down_ && tiles_.first(tile + 1) > tiles_.things / 2; }

  void pack(uint32_t* packed, int64_t tile, int64_t piece) const {
    const int64_t unit = piece * kLanes, height = tiles_.size(tile);
    const uint32_t* from = x_ + tiles_.first(tile) * units_ + unit;
    transpose(tile_at(packed, tile) + unit * height, from, units_, height,
              std::min<int64_t>(kLanes, units_ - unit));
  }

  // A x of base's rows, and zeros for those of rlvr that share a tile with them.
  void shift(uint32_t* packed, int64_t tile, int64_t panel) const {
    if (!has_base(tile)) return;
    const int64_t height = tiles_.size(tile);
    const uint32_t *x = tile_at(packed, tile), *w = down_ + panel * units_ * kPanel;
    alignas(64) float sums[kTile * kPanel] = {};
    for (int64_t unit = 0; unit < units_; unit += kBlock)
      kAccumulate<T>[0][height - 1](sums, x + unit * height, w + unit * kPanel,
                                    std::min(kBlock, units_ - unit), nullptr);
    const int64_t begin = units_ + panel * kPanel / Unit<T>::elements;
    const int64_t end = std::min(begin + kPanel / Unit<T>::elements, row_units_);
    for (int64_t row = 0; row < height; ++row) {
      alignas(64) T values[kPanel] = {};
      const bool of_base = tiles_.first(tile) + row >= tiles_.things / 2;
      if (of_base) store(values, kPanel, sums + row * kPanel);
      uint32_t units[kPanel];
      std::memcpy(units, values, sizeof values);
      for (int64_t unit = begin; unit < end; ++unit)
        tile_at(packed, tile)[unit * height + row] = units[unit - begin];
    }
  }

  // Tiles of a panel, a block of units after another: a block stays in the first-level cache.
  void multiply(uint32_t* packed, int64_t begin, int64_t tiles, int64_t panel) const {
    alignas(64) float sums[kBatch][kTile * kPanel];
    std::fill_n(&sums[0][0], tiles * kTile * kPanel, 0.0f);
    const uint32_t* w = weight_ + panel * panel_units_ * kPanel;
    for (int64_t unit = 0; unit < row_units_; unit += kBlock) {
      const int64_t block = std::min(kBlock, row_units_ - unit);
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t height = tiles_.size(begin + i);
        const int64_t units = has_base(begin + i) ? block : std::min(block, units_ - unit);
        // The same block of the next panel, by the first two tiles if there are two. After the last
        // panel the memory may not be ours, or be there at all: a prefetch ignores that.
        const int lines = tiles == 1 ? 2 : i < 2 ? 1 : 0;
        const uint32_t* next = w + (panel_units_ + unit) * kPanel + i * block * kLanes;
        kAccumulate<T>[lines][height - 1](sums[i], tile_at(packed, begin + i) + unit * height,
                                          w + unit * kPanel, units, next);
      }
    }
    for (int64_t i = 0; i < tiles; ++i) finish(begin + i, panel, sums[i]);
  }

  void finish(int64_t tile, int64_t panel, float* sums) const {
    const int64_t column = panel * kPanel, columns = std::min<int64_t>(kPanel, outputs_ - column);
    for (int64_t row = 0; row < tiles_.size(tile); ++row, sums += kPanel) {
      if (bias_)
        for (int64_t i = 0; i < columns; ++i) sums[i] += static_cast<float>(bias_[column + i]);
      store(out_ + (tiles_.first(tile) + row) * outputs_ + column, columns, sums);
    }
  }

  static void store(T* to, int64_t columns, const float* values) {
    const uint32_t mask = columns == kPanel ? ~0u : (1u << columns) - 1;
    Unit<T>::store(to, mask & 0xffff, _mm512_load_ps(values));
    Unit<T>::store(to + kLanes, mask >> kLanes, _mm512_load_ps(values + kLanes));
  }

  const uint32_t *x_, *weight_, *down_;
  const T* bias_;
  T* out_;
  int64_t outputs_, panels_, panel_units_, down_panels_, units_, row_units_;
  Parts tiles_;
};

void check(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& down,
           const std::optional<Tensor>& bias, int64_t outputs) {
  const bool is_float = x.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float || x.scalar_type() == ScalarType::BFloat16,
                  "x must be float32 or bfloat16");
  const int64_t elements = is_float ? Unit<float>::elements : Unit<BFloat16>::elements;
  const auto is_packed = [&](const Tensor& packed, int64_t units, int64_t of) {
    return packed.scalar_type() == x.scalar_type() && packed.dim() == 3 && packed.is_contiguous() &&
           packed.size(0) == ceil_div(of, kPanel) && packed.size(1) == units &&
           packed.size(2) == kPanel * elements;
  };
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) % elements == 0, "x must be [N, I], I in whole units");
  const int64_t units = x.size(1) / elements, rank_units = weight.size(1) - units;
  STD_TORCH_CHECK(rank_units >= 0 && is_packed(weight, units + rank_units, outputs),
                  "weight must be packed, of x's dtype, for ", outputs, " outputs");
  STD_TORCH_CHECK(!down || (x.size(0) % 2 == 0 && is_packed(*down, units, rank_units * elements)),
                  "down must be packed, of x's dtype and the weight's rank, and x two halves");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == x.scalar_type() && bias->dim() == 1 &&
                            bias->is_contiguous() && bias->size(0) == outputs),
                  "bias must be [O] of x's dtype");
}

Tensor delta_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& down,
                    const std::optional<Tensor>& bias, int64_t outputs) {
  check(x, weight, down, bias, outputs);
  const Tensor rows = x.is_contiguous() ? x : torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(rows, {rows.size(0), outputs});
  if (rows.size(0) == 0) return out;
  const Tensor* down_or_none = down ? &*down : nullptr;
  const Tensor* bias_or_none = bias ? &*bias : nullptr;
  if (rows.scalar_type() == ScalarType::BFloat16)
    Product<BFloat16>(rows, weight, down_or_none, bias_or_none, out).run();
  else
    Product<float>(rows, weight, down_or_none, bias_or_none, out).run();
  return out;
}

}  // namespace
}  // namespace rlvr_decode

STABLE_TORCH_LIBRARY_FRAGMENT(rlvr_decode, m) {
  m.def("delta_linear(Tensor x, Tensor weight, Tensor? down, Tensor? bias, int outputs) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rlvr_decode, CPU, m) {
  m.impl("delta_linear", TORCH_BOX(&rlvr_decode::delta_linear));
}
