// Causal convolution of every channel with its own few taps, then SiLU; forward and backward.
// Lanes of a vector are neighbouring channels; the window of rows stays in registers.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace megabase {
namespace MB_SET {

constexpr int MAX_TAPS = 8;

// One block of channels: taps, bias, and the rows of the input before and after a position.
template <class T, int K>
struct Taps {
    Vec<T> weight[K], bias;
    int64_t channel;
    int count;

    MB_INLINE Taps(const Conv<T>& p, int64_t first) : channel(first) {
        const int64_t left = p.channels - first;
        count = left < lanes<T> ? int(left) : lanes<T>;
        for (int k = 0; k < K; ++k) {
            weight[k] = Vec<T>{};
            for (int i = 0; i < count; ++i) weight[k][i] = p.weight[(first + i) * K + k];
        }
        bias = p.bias ? load_part<T>(p.bias + first, count) : Vec<T>{};
    }
    MB_INLINE Vec<T> load(const T* row) const { return load_part<T>(row + channel, count); }
    MB_INLINE void store(T* row, Vec<T> value) const { store_part<T>(row + channel, value, count); }

    // The input at a position, which may lie before the first one.
    MB_INLINE Vec<T> input(const Conv<T>& p, int64_t b, int64_t t) const {
        if (t >= 0) return load(p.x.at(b, t));
        return p.past ? load(p.past.at(b, t + K - 1)) : Vec<T>{};
    }
    // window[0] is the oldest of the K inputs.
    MB_INLINE Vec<T> convolve(const Vec<T>* window) const {
        Vec<T> y = bias;
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) y += weight[k] * window[k];
        return y;
    }
};

template <int K, class V>
MB_INLINE void push(V* window, V value) {
#pragma GCC unroll 8
    for (int k = 0; k + 1 < K; ++k) window[k] = window[k + 1];
    window[K - 1] = value;
}

template <class T, int K>
void conv_forward_taps(const Conv<T>& p, int64_t b, int64_t begin, int64_t end) {
    for (int64_t channel = 0; channel < p.channels; channel += lanes<T>) {
        const Taps<T, K> taps(p, channel);
        Vec<T> window[K] = {};
        for (int64_t t = begin - (K - 1); t < begin; ++t) push<K>(window, taps.input(p, b, t));
        for (int64_t t = begin; t < end; ++t) {
            push<K>(window, taps.load(p.x.at(b, t)));
            const Vec<T> y = taps.convolve(window);
            taps.store(p.y.at(b, t), y * sigmoid<T>(y));
        }
    }
}

// Fills dx from begin to end, and dpast with the first positions. Slopes past `end` are computed
// again by the task that comes next.
template <class T, int K>
void conv_backward_taps(const Conv<T>& p, int64_t b, int64_t begin, int64_t end, int64_t task) {
    for (int64_t channel = 0; channel < p.channels; channel += lanes<T>) {
        const Taps<T, K> taps(p, channel);
        Vec<T> window[K] = {}, slopes[K] = {}, dweight[K] = {}, dbias{};
        for (int64_t t = begin - (K - 1); t < begin; ++t) push<K>(window, taps.input(p, b, t));
        for (int64_t t = begin; t < end + K - 1; ++t) {
            Vec<T> slope{};
            if (t < p.length) {
                push<K>(window, taps.load(p.x.at(b, t)));
                const Vec<T> y = taps.convolve(window);
                const Vec<T> part = sigmoid<T>(y);
                slope = taps.load(p.dy.at(b, t)) * (part + y * part * (T(1) - part));
            }
            push<K>(slopes, slope);
            if (t < end) {
                dbias += slope;
#pragma GCC unroll 8
                for (int k = 0; k < K; ++k) dweight[k] += slope * window[k];
            }
            const int64_t at = t - (K - 1);
            if (at < begin && (begin > 0 || !p.dpast)) continue;
            Vec<T> dx{};
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k) dx += taps.weight[k] * slopes[K - 1 - k];
            taps.store(at < 0 ? p.dpast.at(b, t) : p.dx.at(b, at), dx);
        }
        for (int k = 0; k < K; ++k)
            taps.store(p.dweight + (task * K + k) * p.channels, dweight[k]);
        taps.store(p.dbias + task * p.channels, dbias);
    }
}

#define MB_FOR_TAPS(call)         \
    switch (p.taps) {             \
        case 1: return call(1);   \
        case 2: return call(2);   \
        case 3: return call(3);   \
        case 4: return call(4);   \
        case 5: return call(5);   \
        case 6: return call(6);   \
        case 7: return call(7);   \
        case 8: return call(8);   \
    }

template <class T>
void conv_forward(const Conv<T>& p, int64_t b, int64_t begin, int64_t end) {
#define MB_CALL(K) conv_forward_taps<T, K>(p, b, begin, end)
    MB_FOR_TAPS(MB_CALL)
#undef MB_CALL
}

template <class T>
void conv_backward(const Conv<T>& p, int64_t b, int64_t begin, int64_t end, int64_t task) {
#define MB_CALL(K) conv_backward_taps<T, K>(p, b, begin, end, task)
    MB_FOR_TAPS(MB_CALL)
#undef MB_CALL
}

#undef MB_FOR_TAPS

}  // namespace MB_SET
}  // namespace megabase
