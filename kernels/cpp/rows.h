// What the blocked kernels do to the rows of a block: LayerNorm both ways, sums over rows, turning.
#pragma once

#include "product.h"

namespace megabase {
namespace MB_SET {

constexpr int64_t BLOCK_ROWS = 192;  // a block: long enough for products, short enough for the cache

template <class T>
MB_INLINE void clear(T* to, int64_t count) {
    memset(to, 0, size_t(count) * sizeof(T));
}

template <class T>
MB_INLINE T square_root(T x) {
    if constexpr (sizeof(T) == 4)
        return __builtin_sqrtf(x);
    else
        return __builtin_sqrt(x);
}

template <class T>
struct Moments {
    T mean, rstd;
};

// Rows of `width` numbers; in two passes over a row, which is in the cache.
template <class T>
MB_INLINE Moments<T> moments(const T* x, int64_t width, T eps) {
    constexpr int W = lanes<T>;
    Vec<T> total{};
    int64_t i = 0;
    for (; i + W <= width; i += W) total += load<T>(x + i);
    T mean = sum<T>(total);
    for (int64_t j = i; j < width; ++j) mean += x[j];
    mean /= T(width);
    Vec<T> squares{};
    for (i = 0; i + W <= width; i += W) {
        const Vec<T> d = load<T>(x + i) - mean;
        squares += d * d;
    }
    T variance = sum<T>(squares);
    for (int64_t j = i; j < width; ++j) variance += (x[j] - mean) * (x[j] - mean);
    return {mean, T(1) / square_root<T>(variance / T(width) + eps)};
}

// LayerNorm of `rows` rows into rows of `pitch`; a copy where there is no weight. `bias` may be
// missing. What lies between `width` and `pitch` becomes zero.
template <class T>
void normalise(
    const Norm<T>& norm, const T* x, int64_t x_row, int64_t rows, int64_t width, T* h,
    int64_t pitch
) {
    constexpr int W = lanes<T>;
    for (int64_t r = 0; r < rows; ++r, x += x_row, h += pitch) {
        Moments<T> at{T(0), T(1)};
        if (norm.weight) at = moments<T>(x, width, norm.eps);
        for (int64_t i = 0; i < pitch; i += W) {
            const int64_t left = width - i;
            const int count = left >= W ? W : (left > 0 ? int(left) : 0);
            Vec<T> value = load_part<T>(x + i, count);
            if (norm.weight) {
                value = (value - at.mean) * at.rstd * load_part<T>(norm.weight + i, count);
                if (norm.bias) value += load_part<T>(norm.bias + i, count);
            }
            if (count < W) {  // the mean was taken from lanes that hold nothing
                Vec<T> kept{};
                for (int j = 0; j < count; ++j) kept[j] = value[j];
                value = kept;
            }
            store<T>(h + i, value);
        }
    }
}

// Logits of four letters from the LayerNorm of every row: `to` is (rows, 4), `w` (4, width).
template <class T>
void letter_logits(
    const Norm<T>& norm, const T* x, int64_t rows, int64_t width, const T* w, T* to
) {
    constexpr int W = lanes<T>;
    for (int64_t r = 0; r < rows; ++r, x += width, to += 4) {
        Moments<T> at{T(0), T(1)};
        if (norm.weight) at = moments<T>(x, width, norm.eps);
        Vec<T> sums[4] = {};
        for (int64_t i = 0; i < width; i += W) {
            const int count = width - i < W ? int(width - i) : W;
            Vec<T> value = load_part<T>(x + i, count);
            if (norm.weight) {
                value = (value - at.mean) * at.rstd * load_part<T>(norm.weight + i, count);
                if (norm.bias) value += load_part<T>(norm.bias + i, count);
            }
            for (int v = 0; v < 4; ++v) sums[v] += value * load_part<T>(w + v * width + i, count);
        }
        for (int v = 0; v < 4; ++v) to[v] = sum<T>(sums[v]);
    }
}

// The gradient of the input of LayerNorm from that of its output; sums for weight and bias.
template <class T>
void normalise_backward(
    const Norm<T>& norm, const T* x, int64_t x_row, const T* dh, int64_t pitch, int64_t rows,
    int64_t width, T* dx, int64_t dx_row, T* dweight, T* dbias
) {
    constexpr int W = lanes<T>;
    for (int64_t r = 0; r < rows; ++r, x += x_row, dh += pitch) {
        Moments<T> at{T(0), T(1)};
        T first = 0, second = 0;
        if (norm.weight) {
            at = moments<T>(x, width, norm.eps);
            Vec<T> a{}, b{};
            for (int64_t i = 0; i < width; i += W) {
                const int64_t left = width - i;
                const int count = left >= W ? W : int(left);
                const Vec<T> d = load_part<T>(dh + i, count);
                const Vec<T> hat = (load_part<T>(x + i, count) - at.mean) * at.rstd;
                const Vec<T> g = d * load_part<T>(norm.weight + i, count);
                a += g;
                b += g * hat;
                if (dweight) {
                    store_part<T>(dweight + i, load_part<T>(dweight + i, count) + d * hat, count);
                    store_part<T>(dbias + i, load_part<T>(dbias + i, count) + d, count);
                }
            }
            first = sum<T>(a) / T(width), second = sum<T>(b) / T(width);
        }
        if (!dx) continue;
        for (int64_t i = 0; i < width; i += W) {
            const int64_t left = width - i;
            const int count = left >= W ? W : int(left);
            Vec<T> d = load_part<T>(dh + i, count);
            if (norm.weight) {
                const Vec<T> hat = (load_part<T>(x + i, count) - at.mean) * at.rstd;
                d = (d * load_part<T>(norm.weight + i, count) - first - hat * second) * at.rstd;
            }
            store_part<T>(dx + i, d, count);
        }
        dx += dx_row;
    }
}

// Copy rows into rows of `pitch`, with zeros behind them.
template <class T>
void copy_rows(const T* from, int64_t row, int64_t rows, int64_t width, T* to, int64_t pitch) {
    for (int64_t r = 0; r < rows; ++r, from += row, to += pitch) {
        memcpy(to, from, size_t(width) * sizeof(T));
        for (int64_t i = width; i < pitch; ++i) to[i] = T(0);
    }
}

// The same without zeros, for what another row length holds.
template <class T>
void copy_block(const T* from, int64_t row, int64_t rows, int64_t width, T* to, int64_t to_row) {
    for (int64_t r = 0; r < rows; ++r)
        memcpy(to + r * to_row, from + r * row, size_t(width) * sizeof(T));
}

template <class T>
MB_INLINE void add_to(T* total, Vec<T> value) {
    store<T>(total, load<T>(total) + value);
}

// Add each of `rows` rows to `total`; all are of `pitch`, a multiple of a vector.
template <class T>
void add_rows(const T* from, int64_t row, int64_t rows, int64_t pitch, T* total) {
    for (int64_t i = 0; i < pitch; i += lanes<T>) {
        Vec<T> one = load<T>(total + i);
        for (int64_t r = 0; r < rows; ++r) one += load<T>(from + r * row + i);
        store<T>(total + i, one);
    }
}

// Copy a matrix of `rows` x `columns`, or add it, to one without gaps.
template <class T>
void add_matrix(const T* from, int64_t row, int64_t rows, int64_t columns, T* to, bool add) {
    for (int64_t r = 0; r < rows; ++r, from += row, to += columns)
        for (int64_t c = 0; c < columns; ++c) to[c] = add ? to[c] + from[c] : from[c];
}

// to[c * to_row + t] = from[t * from_row + c] for t < rows and c < columns. One of the two strides
// is the length of a sequence, often a power of two, whose rows all fall on the same place of the
// cache: so one column is finished before the next.
template <class T>
void turn(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
    for (int64_t c = 0; c < columns; ++c) {
        const T* read = from + c;
        T* write = to + c * to_row;
        for (int64_t t = 0; t < rows; ++t) write[t] = read[t * from_row];
    }
}

// The same from rows to columns: to[t * to_row + c] = from[c * from_row + t].
template <class T>
void turn_back(
    const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row
) {
    for (int64_t c = 0; c < columns; ++c) {
        const T* read = from + c * from_row;
        T* write = to + c;
        for (int64_t t = 0; t < rows; ++t) write[t * to_row] = read[t];
    }
}

}  // namespace MB_SET
}  // namespace megabase
