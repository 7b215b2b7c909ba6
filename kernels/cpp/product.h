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
template <class T>
struct Right {
    const T* data;
    int64_t row, panel;
};

// The left factor: element (m, k) is data[m * row + k * column].
template <class T>
struct Left {
    const T* data;
    int64_t row, column;
};

// What the sums begin with.
template <class T>
struct Begin {
    bool from_target;  // with what the target holds
    const T* bias;     // else with one number for each column (padded), or with zero
};

template <class T, int ROWS, bool PART>
MB_INLINE void multiply_tile(
    Left<T> a, const T* b, int64_t b_row, T* c, int64_t c_row, int64_t depth, Begin<T> begin,
    const T* bias, int64_t columns
) {
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
            if (begin.from_target)
                sums[r][j] = PART ? load_part<T>(c + r * c_row + j * W, counts[j])
                                  : load<T>(c + r * c_row + j * W);
            else
                sums[r][j] = bias ? load<T>(bias + j * W) : Vec<T>{};
        }
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> row[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) row[j] = load<T>(b + k * b_row + j * W);
        const T* from = a.data + k * a.column;
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const Vec<T> one = all<T>(from[r * a.row]);
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) sums[r][j] += one * row[j];
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

template <class T, int ROWS>
void multiply_rows(
    Left<T> a, const T* b, int64_t b_row, T* c, int64_t c_row, int64_t depth, Begin<T> begin,
    const T* bias, int64_t columns
) {
    if (columns >= PANEL<T>)
        multiply_tile<T, ROWS, false>(a, b, b_row, c, c_row, depth, begin, bias, columns);
    else
        multiply_tile<T, ROWS, true>(a, b, b_row, c, c_row, depth, begin, bias, columns);
}

// C (rows x columns) = or += A (rows x depth) B (depth x columns).
template <class T>
void multiply(
    int64_t rows, int64_t columns, int64_t depth, Left<T> a, Right<T> b, T* c, int64_t c_row,
    Begin<T> begin
) {
    for (int64_t j = 0; j * PANEL<T> < columns; ++j) {
        const T* panel = b.data + j * b.panel;
        const T* bias = begin.bias ? begin.bias + j * PANEL<T> : nullptr;
        const int64_t left = columns - j * PANEL<T>;
        for (int64_t m = 0; m < rows; m += TILE) {
            const Left<T> part{a.data + m * a.row, a.row, a.column};
            T* to = c + m * c_row + j * PANEL<T>;
#define MB_ROWS(R) multiply_rows<T, R>(part, panel, b.row, to, c_row, depth, begin, bias, left)
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

// Lay a matrix of depth x columns out in panels; element (k, n) of it is from[k * row + n * column].
// What is missing in the last panel is zero.
template <class T>
void pack(const T* from, int64_t row, int64_t column, int64_t depth, int64_t columns, T* to) {
    for (int64_t j = 0; j < columns; j += PANEL<T>)
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t n = 0; n < PANEL<T>; ++n)
                *to++ = j + n < columns ? from[k * row + (j + n) * column] : T(0);
}

template <class T>
MB_INLINE Right<T> packed(const T* data, int64_t depth) {
    return {data, PANEL<T>, depth * PANEL<T>};
}

template <class T>
MB_INLINE int64_t packed_size(int64_t depth, int64_t columns) {
    return depth * padded<T>(columns);
}

}  // namespace MB_SET
}  // namespace megabase
