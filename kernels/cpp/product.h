// Matrix products of tiles that stay in the cache, for kernels that have other work to do between
// them. A product is C = A B with C and B in panels of PANEL columns; A may lie either way.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace megabase {
namespace MB_SET {

// A tile of C in registers: TILE rows of PANEL_VECTORS vectors, 24 sums with 32 registers, 12
// with 16.
constexpr int TILE = 6;
constexpr int PANEL_VECTORS = MB_BYTES == 64 ? 4 : 2;

template <class T>
constexpr int PANEL = PANEL_VECTORS * lanes<T>;

template <class T>
MB_INLINE int64_t padded(int64_t columns) {
    return (columns + PANEL<T> - 1) / PANEL<T> * PANEL<T>;
}

// The right factor: element (k, n) of panel j is data[j * panel + k * row + n].
template <class E>
struct Right {
    const E* data;
    int64_t row, panel;
};

// The left factor: element (m, k) is data[m * row + k * column].
template <class E>
struct Left {
    const E* data;
    int64_t row, column;
};

// Memory handed out piece by piece, each on the border of a vector. With no memory it counts.
template <class T>
class Arena {
  public:
    explicit Arena(T* memory) : memory_(memory) {}
    T* take(int64_t elements) {
        T* found = memory_ ? memory_ + used_ : nullptr;
        used_ += (elements + 15) / 16 * 16;
        return found;
    }
    int64_t used() const { return used_; }

  private:
    T* memory_;
    int64_t used_ = 0;
};

// Products of the numbers as they are.
template <class T>
struct Full {
    using Number = T;
    using Element = T;
    static constexpr int64_t depth(int64_t k) { return k; }
    MB_INLINE static Vec<T> one(const T* from) { return all<T>(*from); }
    MB_INLINE static Vec<T> row(const T* from) { return load<T>(from); }
    MB_INLINE static void add(Vec<T>& total, Vec<T> one, Vec<T> row) { total += one * row; }

    static T* take(Arena<T>&, int64_t) { return nullptr; }
    static void to_rows(const T*, int64_t, int64_t, T*) {}
    static void to_pairs(const T*, int64_t, int64_t, T*) {}
    static Left<T> rows(const T* x, int64_t pitch, const T*) { return {x, pitch, 1}; }
    static Left<T> turned(const T* x, int64_t pitch, const T*) { return {x, 1, pitch}; }
    static Right<T> right(const T* x, int64_t pitch, const T*) { return {x, pitch, PANEL<T>}; }
    static T element(const T* from, int64_t, bool) { return *from; }
};

#if defined(__AVX512BF16__)
// Products of numbers rounded to bfloat16, with sums in float. An element is a pair of neighbours
// along the depth of the product. Matrices of numbers are rounded into `pairs` first: pairs of
// columns (`to_rows`) where the depth runs along the rows, pairs of rows (`to_pairs`) where it runs
// down the columns.
struct Half {
    using Number = float;
    using Element = uint32_t;
    static constexpr int64_t depth(int64_t k) { return (k + 1) / 2; }
    MB_INLINE static __m512i one(const uint32_t* from) { return _mm512_set1_epi32(int(*from)); }
    MB_INLINE static __m512i row(const uint32_t* from) { return _mm512_loadu_si512(from); }
    MB_INLINE static void add(Vec<float>& total, __m512i one, __m512i row) {
        total = (Vec<float>)_mm512_dpbf16_ps((__m512)total, (__m512bh)row, (__m512bh)one);
    }

    static uint32_t* take(Arena<float>& arena, int64_t numbers) {
        return reinterpret_cast<uint32_t*>(arena.take((numbers + 1) / 2));
    }
    static void to_rows(const float* x, int64_t pitch, int64_t rows, uint32_t* to) {
        for (int64_t i = 0; i < rows * pitch; i += 32, to += 16) {
            const __m512bh both =
                _mm512_cvtne2ps_pbh((__m512)load<float>(x + i + 16), (__m512)load<float>(x + i));
            _mm512_storeu_si512(to, (__m512i)both);
        }
    }
    static void to_pairs(const float* x, int64_t pitch, int64_t rows, uint32_t* to) {
        for (int64_t r = 0; r < rows; r += 2, x += 2 * pitch)
            for (int64_t i = 0; i < pitch; i += 16, to += 16) {
                const Vec<float> next = r + 1 < rows ? load<float>(x + pitch + i) : Vec<float>{};
                const __m256i low = (__m256i)_mm512_cvtneps_pbh((__m512)load<float>(x + i));
                const __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)next);
                const __m512i pair = _mm512_or_si512(
                    _mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)
                );
                _mm512_storeu_si512(to, pair);
            }
    }
    static Left<uint32_t> rows(const float*, int64_t pitch, const uint32_t* pairs) {
        return {pairs, pitch / 2, 1};
    }
    static Left<uint32_t> turned(const float*, int64_t pitch, const uint32_t* pairs) {
        return {pairs, 1, pitch};
    }
    static Right<uint32_t> right(const float*, int64_t pitch, const uint32_t* pairs) {
        return {pairs, pitch, PANEL<float>};
    }
    // The pair at `from` and `step` behind it, which may be missing.
    static uint32_t element(const float* from, int64_t step, bool last) {
        return rounded(*from) | (last ? 0u : rounded(from[step]) << 16);
    }
    static uint32_t rounded(float x) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (x != x) return (bits >> 16) | 0x40;
        return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
};
#endif

// What the sums begin with.
template <class T>
struct Begin {
    bool from_target;  // with what the target holds
    const T* bias;     // else with one number for each column (padded), or with zero
};

template <class P, int ROWS, bool PART>
MB_INLINE void multiply_tile(
    Left<typename P::Element> a, const typename P::Element* b, int64_t b_row,
    typename P::Number* c, int64_t c_row, int64_t depth, bool from_target,
    const typename P::Number* bias, int64_t columns
) {
    using T = typename P::Number;
    constexpr int V = PANEL_VECTORS, W = lanes<T>;
    Vec<T> sums[ROWS][V];
    int counts[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
        const int64_t left = columns - j * W;
        counts[j] = !PART || left >= W ? W : (left > 0 ? int(left) : 0);
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            if (from_target)
                sums[r][j] = PART ? load_part<T>(c + r * c_row + j * W, counts[j])
                                  : load<T>(c + r * c_row + j * W);
            else
                sums[r][j] = bias ? load<T>(bias + j * W) : Vec<T>{};
        }
    for (int64_t k = 0; k < depth; ++k) {
        decltype(P::row(b)) row[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) row[j] = P::row(b + k * b_row + j * W);
        const typename P::Element* from = a.data + k * a.column;
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const auto one = P::one(from + r * a.row);
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) P::add(sums[r][j], one, row[j]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            if constexpr (PART)
                store_part<T>(c + r * c_row + j * W, sums[r][j], counts[j]);
            else
                store<T>(c + r * c_row + j * W, sums[r][j]);
        }
}

template <class P, int ROWS>
void multiply_rows(
    Left<typename P::Element> a, const typename P::Element* b, int64_t b_row,
    typename P::Number* c, int64_t c_row, int64_t depth, bool from_target,
    const typename P::Number* bias, int64_t columns
) {
    if (columns >= PANEL<typename P::Number>)
        multiply_tile<P, ROWS, false>(a, b, b_row, c, c_row, depth, from_target, bias, columns);
    else
        multiply_tile<P, ROWS, true>(a, b, b_row, c, c_row, depth, from_target, bias, columns);
}

#if defined(__AMX_BF16__)
// A tile of the matrix unit: 16 rows of 16 numbers, or of 16 pairs of bfloat16.
constexpr int64_t UNIT = 16;
constexpr int64_t MOST_TURNED = 96;  // pairs of a left factor that is turned: those of a block of 192 rows

// Sixteen rows of the left factor whose elements lie along the columns, turned into rows.
inline void turn_left(Left<uint32_t> a, int64_t depth, uint32_t* to) {
    for (int64_t k = 0; k < depth; k += UNIT) {
        __m512i rows[16], next[16];
        for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(a.data + (k + i) * a.column);
        for (int i = 0; i < 16; i += 2) {
            next[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            next[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int j = 0; j < 2; ++j) {
                rows[i + 2 * j] = _mm512_unpacklo_epi64(next[i + j], next[i + 2 + j]);
                rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(next[i + j], next[i + 2 + j]);
            }
        // Quarter q of rows[4 g + j] holds elements 4 g to 4 g + 3 of row 4 q + j.
        for (int j = 0; j < 4; ++j) {
            const __m512i low0 = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
            const __m512i high0 = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd);
            const __m512i low1 = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
            const __m512i high1 = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
            _mm512_storeu_si512(to + j * depth + k, _mm512_shuffle_i32x4(low0, low1, 0x88));
            _mm512_storeu_si512(to + (8 + j) * depth + k, _mm512_shuffle_i32x4(low0, low1, 0xdd));
            _mm512_storeu_si512(to + (4 + j) * depth + k, _mm512_shuffle_i32x4(high0, high1, 0x88));
            _mm512_storeu_si512(to + (12 + j) * depth + k, _mm512_shuffle_i32x4(high0, high1, 0xdd));
        }
    }
}

// The product in the matrix unit, for whole tiles only: gives how many rows it has done. Sums are in
// float, two chains for each number.
inline int64_t multiply_in_tiles(
    int64_t rows, int64_t columns, int64_t depth, Left<uint32_t> a, Right<uint32_t> b, float* c,
    int64_t c_row, Begin<float> begin
) {
    constexpr int64_t WIDE = PANEL<float>;
    const bool turned = a.column != 1;
    if (columns % WIDE || depth % UNIT || (turned && depth > MOST_TURNED)) return 0;
    const int64_t whole = rows / (2 * UNIT) * (2 * UNIT);
    if (!whole) return 0;
    alignas(64) uint8_t shape[64] = {1};
    for (int tile = 0; tile < 8; ++tile) shape[16 + 2 * tile] = 64, shape[48 + tile] = UNIT;
    _tile_loadconfig(shape);
    alignas(64) uint32_t left[2 * UNIT * MOST_TURNED];
    for (int64_t m = 0; m < whole; m += 2 * UNIT) {
        Left<uint32_t> part{a.data + m * a.row, a.row, 1};
        if (turned) {
            turn_left({part.data, 1, a.column}, depth, left);
            turn_left({part.data + UNIT, 1, a.column}, depth, left + UNIT * depth);
            part = {left, depth, 1};
        }
        asm volatile("" ::: "memory");  // the compiler is not told that tiles are read from memory
        const size_t a_stride = size_t(part.row) * 4, b_stride = size_t(b.row) * 4;
        const uint32_t* below = part.data + UNIT * part.row;
        for (int64_t n = 0; n < columns; n += 2 * UNIT) {
            const uint32_t* from = b.data + n / WIDE * b.panel + n % WIDE;
            float* const to = c + m * c_row + n;
            const size_t c_stride = size_t(c_row) * 4;
            if (begin.from_target) {
                _tile_loadd(0, to, c_stride);
                _tile_loadd(1, to + UNIT, c_stride);
                _tile_loadd(2, to + UNIT * c_row, c_stride);
                _tile_loadd(3, to + UNIT * c_row + UNIT, c_stride);
            } else if (begin.bias) {
                _tile_loadd(0, begin.bias + n, 0);
                _tile_loadd(1, begin.bias + n + UNIT, 0);
                _tile_loadd(2, begin.bias + n, 0);
                _tile_loadd(3, begin.bias + n + UNIT, 0);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t k = 0; k < depth; k += UNIT) {
                _tile_loadd(4, part.data + k, a_stride);
                _tile_loadd(6, from + k * b.row, b_stride);
                _tile_loadd(7, from + k * b.row + UNIT, b_stride);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, below + k, a_stride);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, c_stride);
            _tile_stored(1, to + UNIT, c_stride);
            _tile_stored(2, to + UNIT * c_row, c_stride);
            _tile_stored(3, to + UNIT * c_row + UNIT, c_stride);
        }
    }
    _tile_release();
    return whole;
}
#endif

// C (rows x columns) = or += A (rows x depth) B (depth x columns).
template <class P>
void multiply(
    int64_t rows, int64_t columns, int64_t depth, Left<typename P::Element> a,
    Right<typename P::Element> b, typename P::Number* c, int64_t c_row,
    Begin<typename P::Number> begin
) {
    constexpr int64_t WIDE = PANEL<typename P::Number>;
    depth = P::depth(depth);
    int64_t done = 0;
#if defined(__AMX_BF16__)
    if constexpr (sizeof(typename P::Number) == 4 && P::depth(2) == 1)
        done = multiply_in_tiles(rows, columns, depth, a, b, c, c_row, begin);
#endif
    for (int64_t j = 0; j * WIDE < columns; ++j) {
        const typename P::Element* panel = b.data + j * b.panel;
        const typename P::Number* bias = begin.bias ? begin.bias + j * WIDE : nullptr;
        const int64_t left = columns - j * WIDE;
        for (int64_t m = done; m < rows; m += TILE) {
            const Left<typename P::Element> part{a.data + m * a.row, a.row, a.column};
            typename P::Number* to = c + m * c_row + j * WIDE;
#define MB_ROWS(R) multiply_rows<P, R>(part, panel, b.row, to, c_row, depth, begin.from_target, bias, left)
            switch (rows - m) {
                case 1: MB_ROWS(1); break;
                case 2: MB_ROWS(2); break;
                case 3: MB_ROWS(3); break;
                case 4: MB_ROWS(4); break;
                case 5: MB_ROWS(5); break;
                default: MB_ROWS(6);
            }
#undef MB_ROWS
        }
    }
}

// Lay a matrix of depth x columns out in panels; number (k, n) of it is from[k * row + n * column].
// What is missing in the last panel is zero.
template <class P>
void pack(
    const typename P::Number* from, int64_t row, int64_t column, int64_t depth, int64_t columns,
    typename P::Element* to
) {
    constexpr int64_t WIDE = PANEL<typename P::Number>;
    const int64_t elements = P::depth(depth), step = depth == elements ? 1 : 2;
    for (int64_t j = 0; j < columns; j += WIDE)
        for (int64_t k = 0; k < elements; ++k)
            for (int64_t n = 0; n < WIDE; ++n) {
                const typename P::Number* at = from + k * step * row + (j + n) * column;
                *to++ = j + n < columns ? P::element(at, row, k * step + 1 >= depth) : 0;
            }
}

template <class P>
MB_INLINE Right<typename P::Element> packed(const typename P::Element* data, int64_t depth) {
    constexpr int64_t WIDE = PANEL<typename P::Number>;
    return {data, WIDE, P::depth(depth) * WIDE};
}

// Room for packed weights.
template <class P>
typename P::Element* take_packed(Arena<typename P::Number>& arena, int64_t depth, int64_t columns) {
    return reinterpret_cast<typename P::Element*>(
        arena.take(P::depth(depth) * padded<typename P::Number>(columns))
    );
}

}  // namespace MB_SET
}  // namespace megabase
