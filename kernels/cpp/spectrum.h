// What a long convolution does to spectra, and around its transforms. Complex numbers are pairs of
// real and imaginary part. Plain loops: the compiler makes vectors of them.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace megabase {
namespace MB_SET {

// The products of spectra of one channel of a group of sequences, in one pass over them.
// Elements are pairs of real and imaginary part.
template <class T>
void spectrum_times(T* __restrict u, const T* __restrict k, int64_t frequencies) {
    for (int64_t i = 0; i < 2 * frequencies; i += 2) {
        const T re = u[i] * k[i] - u[i + 1] * k[i + 1];
        const T im = u[i] * k[i + 1] + u[i + 1] * k[i];
        u[i] = re, u[i + 1] = im;
    }
}

// u becomes u k, g becomes g conj(k), and conj(u) g is added to dk.
template <class T>
void spectrum_backward(
    T* __restrict u, T* __restrict g, const T* __restrict k, T* __restrict dk, int64_t frequencies
) {
    for (int64_t i = 0; i < 2 * frequencies; i += 2) {
        const T ur = u[i], ui = u[i + 1], gr = g[i], gi = g[i + 1], kr = k[i], ki = k[i + 1];
        if (dk) {
            dk[i] += ur * gr + ui * gi;
            dk[i + 1] += ur * gi - ui * gr;
        }
        u[i] = ur * kr - ui * ki, u[i + 1] = ur * ki + ui * kr;
        g[i] = gr * kr + gi * ki, g[i + 1] = gi * kr - gr * ki;
    }
}

// Products modulo x^N + 1 by transforms of N / 2 complex numbers: modulo x^(N/2) - i the imaginary
// unit stands for x^(N/2), and with z_j weighted by w^j, w = exp(i pi / N), the product is cyclic.
// `weights` are the cosines of w^0 to w^(N/2 - 1), then their sines. From `length` on u is zero.
template <class T>
void fold(
    const T* __restrict u, int64_t length, const T* __restrict weights, int64_t half, int64_t begin,
    int64_t end, T* __restrict z
) {
    const T *cosine = weights, *sine = weights + half;
    const int64_t both = length - half < begin ? begin : (length - half < end ? length - half : end);
    for (int64_t j = begin; j < both; ++j) {
        z[2 * j] = u[j] * cosine[j] - u[j + half] * sine[j];
        z[2 * j + 1] = u[j] * sine[j] + u[j + half] * cosine[j];
    }
    for (int64_t j = both; j < end; ++j) {
        const T value = j < length ? u[j] : T(0);
        z[2 * j] = value * cosine[j];
        z[2 * j + 1] = value * sine[j];
    }
}

// The way back, and the mean with the product modulo x^N - 1: the lower half of the product itself.
template <class T>
void unfold(
    const T* __restrict z, const T* __restrict cyclic, const T* __restrict weights, int64_t half,
    int64_t begin, int64_t end, T* __restrict y, int64_t length
) {
    const T *cosine = weights, *sine = weights + half;
    const int64_t both = length - half < begin ? begin : (length - half < end ? length - half : end);
    for (int64_t j = begin; j < both; ++j) {
        y[j] = T(0.5) * (cyclic[j] + z[2 * j] * cosine[j] + z[2 * j + 1] * sine[j]);
        y[j + half] =
            T(0.5) * (cyclic[j + half] + z[2 * j + 1] * cosine[j] - z[2 * j] * sine[j]);
    }
    for (int64_t j = both; j < end && j < length; ++j)
        y[j] = T(0.5) * (cyclic[j] + z[2 * j] * cosine[j] + z[2 * j + 1] * sine[j]);
}

}  // namespace MB_SET
}  // namespace megabase
