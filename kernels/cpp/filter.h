// The implicit filter: an MLP of sines over features of the lag, then a window. Block of lags by
// block of lags; the backward pass computes the hidden values again.
#pragma once

#include "rows.h"

namespace megabase {
namespace MB_SET {


template <class T>
struct SineParts;

// Parts of pi / 2, of which the first two have few digits, so that multiples of them are exact;
// and polynomials for |r| <= pi / 4.
template <>
struct SineParts<float> {
    static constexpr float first = 1.5703125f, second = 4.837512969970703125e-4f,
                           third = 7.54978995489188216e-8f, far = 8000.0f;
    MB_INLINE static Vec<float> sine(Vec<float> r, Vec<float> q) {
        Vec<float> p = all(-1.9515295891e-4f);
        p = p * q + 8.3321608736e-3f;
        p = p * q - 1.6666654611e-1f;
        return p * q * r + r;
    }
    MB_INLINE static Vec<float> cosine(Vec<float> q) {
        Vec<float> p = all(2.443315711809948e-5f);
        p = p * q - 1.388731625493765e-3f;
        p = p * q + 4.166664568298827e-2f;
        return p * q * q - 0.5f * q + 1.0f;
    }
    static float far_sine(float x) { return __builtin_sinf(x); }
    static float far_cosine(float x) { return __builtin_cosf(x); }
};

template <>
struct SineParts<double> {
    static constexpr double first = 1.570796251296997070312, second = 7.54978941586159635336e-8,
                            third = 5.3903028581581190529e-15, far = 1e8;
    MB_INLINE static Vec<double> sine(Vec<double> r, Vec<double> q) {
        Vec<double> p = all(1.58962301576546568060e-10);
        p = p * q - 2.50507477628578072866e-8;
        p = p * q + 2.75573136213857245213e-6;
        p = p * q - 1.98412698295895385996e-4;
        p = p * q + 8.33333333332211858878e-3;
        p = p * q - 1.66666666666666307295e-1;
        return p * q * r + r;
    }
    MB_INLINE static Vec<double> cosine(Vec<double> q) {
        Vec<double> p = all(-1.13585365213876817300e-11);
        p = p * q + 2.08757008419747316778e-9;
        p = p * q - 2.75573141792967388112e-7;
        p = p * q + 2.48015872888517045348e-5;
        p = p * q - 1.38888888888730564116e-3;
        p = p * q + 4.16666666666665929218e-2;
        return p * q * q - 0.5 * q + 1.0;
    }
    static double far_sine(double x) { return __builtin_sin(x); }
    static double far_cosine(double x) { return __builtin_cos(x); }
};

// sin x, or cos x.
template <class T, bool COSINE>
MB_INLINE Vec<T> sine(Vec<T> x) {
    typedef typename Kind<T>::Whole Whole;
    using Parts = SineParts<T>;
    const Vec<T> whole = nearest<T>(x * T(0.63661977236758134308));
    const Vec<T> r = x - whole * Parts::first - whole * Parts::second - whole * Parts::third;
    const Vec<T> q = r * r;
    Whole turn = (Whole)(whole + Kind<T>::magic);
    if (COSINE) turn += 1;
    const Vec<T> value = (turn & 1) != 0 ? Parts::cosine(q) : Parts::sine(r, q);
    Vec<T> found = (turn & 2) != 0 ? -value : value;
    const Whole far = (x > Parts::far) | (x < -Parts::far) | (x != x);
    bool any = false;
    for (int i = 0; i < lanes<T>; ++i) any |= far[i] != 0;
    if (__builtin_expect(any, 0))
        for (int i = 0; i < lanes<T>; ++i)
            if (far[i]) found[i] = COSINE ? Parts::far_cosine(x[i]) : Parts::far_sine(x[i]);
    return found;
}

template <class T>
void sine_of(const T* x, T* y, int64_t count, bool cosine) {
    for (int64_t i = 0; i < count; i += lanes<T>) {
        const int some = count - i < lanes<T> ? int(count - i) : lanes<T>;
        const Vec<T> v = load_part<T>(x + i, some);
        store_part<T>(y + i, cosine ? sine<T, true>(v) : sine<T, false>(v), some);
    }
}

template <class T>
struct FilterWeights {
    T *layers[MAX_LAYERS], *biases[MAX_LAYERS], *back[MAX_LAYERS], *last, *last_back, *freq, *rate;

    FilterWeights(const Filter<T>& p, Arena<T>& arena, bool backward) {
        for (int64_t i = 0; i < p.layers; ++i) {
            const int64_t in = i ? p.width : p.features;
            layers[i] = take_packed<Full<T>>(arena, in, p.width);
            biases[i] = arena.take(padded<T>(p.width));
            back[i] = backward ? take_packed<Full<T>>(arena, p.width, in) : nullptr;
        }
        last = backward ? nullptr : take_packed<Full<T>>(arena, p.width, p.channels);
        last_back = backward ? take_packed<Full<T>>(arena, p.channels, p.width) : nullptr;
        freq = arena.take(padded<T>(p.width)), rate = arena.take(padded<T>(p.channels));
    }
    void fill(const Filter<T>& p) const {
        const int64_t W = p.width;
        for (int64_t i = 0; i < p.layers; ++i) {
            const int64_t in = i ? W : p.features;
            pack<Full<T>>(p.weights[i], 1, in, in, W, layers[i]);
            pack<Full<T>>(p.biases[i], 0, 1, 1, W, biases[i]);
            if (back[i]) pack<Full<T>>(p.weights[i], in, 1, W, in, back[i]);
        }
        if (last) pack<Full<T>>(p.last, 1, W, W, p.channels, last);
        if (last_back) pack<Full<T>>(p.last, W, 1, p.channels, W, last_back);
        pack<Full<T>>(p.freq, 0, 1, 1, W, freq);
        if (p.rate) pack<Full<T>>(p.rate, 0, 1, 1, p.channels, rate);
    }
};

template <class T>
struct FilterWork {
    T *dweights[MAX_LAYERS], *dbiases[MAX_LAYERS], *dlast, *dfreq;
    T *angles[MAX_LAYERS], *hidden[MAX_LAYERS], *z, *dh, *da, *tile;
    int64_t sums = 0;

    FilterWork(const Filter<T>& p, Arena<T>& arena, bool backward) {
        const int64_t pitch = padded<T>(p.width);
        if (backward) {
            for (int64_t i = 0; i < p.layers; ++i) {
                dweights[i] = arena.take(p.width * padded<T>(i ? p.width : p.features));
                dbiases[i] = arena.take(pitch);
            }
            dlast = arena.take(p.channels * pitch), dfreq = arena.take(pitch);
            sums = arena.used();
            z = arena.take(BLOCK_ROWS * padded<T>(p.features));
            dh = arena.take(BLOCK_ROWS * pitch), da = arena.take(BLOCK_ROWS * pitch);
        }
        for (int64_t i = 0; i < p.layers; ++i) {
            angles[i] = arena.take(BLOCK_ROWS * pitch);
            hidden[i] = arena.take(BLOCK_ROWS * pitch);
        }
        tile = arena.take(BLOCK_ROWS * (PANEL<T> + lanes<T>));
    }
};

template <class T>
int64_t filter_weights_size(const Filter<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    FilterWeights<T> weights(p, arena, backward);
    return arena.used();
}

template <class T>
void filter_pack(const Filter<T>& p, bool backward, T* memory) {
    Arena<T> arena(memory);
    FilterWeights<T>(p, arena, backward).fill(p);
}

template <class T>
int64_t filter_workspace(const Filter<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    FilterWork<T> work(p, arena, backward);
    return arena.used();
}

// Hidden values of the lags from `at` on.
template <class T>
void hide(
    const Filter<T>& p, const FilterWeights<T>& w, const FilterWork<T>& k, int64_t at, int64_t rows
) {
    const int64_t pitch = padded<T>(p.width);
    for (int64_t i = 0; i < p.layers; ++i) {
        const Left<T> in = i ? Left<T>{k.hidden[i - 1], pitch, 1}
                             : Left<T>{p.z + at * p.features, p.features, 1};
        const int64_t depth = i ? p.width : p.features;
        multiply<Full<T>>(
            rows, pitch, depth, in, packed<Full<T>>(w.layers[i], depth), k.angles[i], pitch,
            {false, w.biases[i]}
        );
        for (int64_t c = 0; c < pitch; c += lanes<T>) {
            const Vec<T> freq = load<T>(w.freq + c);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t here = r * pitch + c;
                store<T>(k.hidden[i] + here, sine<T, false>(load<T>(k.angles[i] + here) * freq));
            }
        }
    }
}

// Multiply rows of a tile, whose channels begin at `c`, by the window.
template <class T>
void window(
    const Filter<T>& p, const FilterWeights<T>& w, int64_t at, int64_t rows, int64_t c, T* tile,
    int64_t row
) {
    if (!p.rate) return;
    for (int64_t i = 0; i < PANEL<T>; i += lanes<T>) {
        const Vec<T> rate = load<T>(w.rate + c + i);
        for (int64_t r = 0; r < rows; ++r) {
            T* const here = tile + r * row + i;
            store<T>(here, load<T>(here) * (exponential<T>(-rate * p.t[at + r]) + p.shift));
        }
    }
}

template <class T>
void filter_forward(const Filter<T>& p, T* packed_weights, int64_t begin, int64_t end, T* memory) {
    constexpr int64_t P = PANEL<T>, row = P + lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const FilterWeights<T> w(p, of_weights, false);
    const FilterWork<T> k(p, arena, false);
    const int64_t W = p.width, pitch = padded<T>(W);
    for (int64_t at = begin; at < end; at += BLOCK_ROWS) {
        const int64_t rows = end - at < BLOCK_ROWS ? end - at : BLOCK_ROWS;
        hide<T>(p, w, k, at, rows);
        for (int64_t c = 0; c < p.channels; c += P) {
            const int64_t some = p.channels - c < P ? p.channels - c : P;
            multiply<Full<T>>(
                rows, P, W, {k.hidden[p.layers - 1], pitch, 1}, packed<Full<T>>(w.last + c * W, W),
                k.tile, row, {false, nullptr}
            );
            window<T>(p, w, at, rows, c, k.tile, row);
            turn<T>(k.tile, row, rows, some, p.k + c * p.lags + at, p.lags);
        }
    }
}

// The sums over the lags from `begin` to `end` are left at the start of `memory`.
template <class T>
void filter_backward(const Filter<T>& p, T* packed_weights, int64_t begin, int64_t end, T* memory) {
    constexpr int64_t P = PANEL<T>, row = P + lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const FilterWeights<T> w(p, of_weights, true);
    const FilterWork<T> k(p, arena, true);
    const int64_t W = p.width, E = p.features, pitch = padded<T>(W);
    clear(memory, k.sums);
    for (int64_t at = begin; at < end; at += BLOCK_ROWS) {
        const int64_t rows = end - at < BLOCK_ROWS ? end - at : BLOCK_ROWS;
        hide<T>(p, w, k, at, rows);
        copy_rows<T>(p.z + at * E, E, rows, E, k.z, padded<T>(E));
        clear(k.tile, BLOCK_ROWS * row);
        for (int64_t c = 0; c < p.channels; c += P) {
            const int64_t some = p.channels - c < P ? p.channels - c : P;
            turn_back<T>(p.dk + c * p.lags + at, p.lags, rows, some, k.tile, row);
            window<T>(p, w, at, rows, c, k.tile, row);
            multiply<Full<T>>(
                some, pitch, rows, {k.tile, 1, row}, {k.hidden[p.layers - 1], pitch, P},
                k.dlast + c * pitch, pitch, {true, nullptr}
            );
            const Right<T> back{w.last_back + c * P, P, p.channels * P};
            multiply<Full<T>>(rows, pitch, some, {k.tile, row, 1}, back, k.dh, pitch, {c > 0, nullptr});
        }
        for (int64_t i = p.layers - 1; i >= 0; --i) {
            for (int64_t c = 0; c < pitch; c += lanes<T>) {
                const Vec<T> freq = load<T>(w.freq + c);
                Vec<T> of_freq = load<T>(k.dfreq + c), of_bias = load<T>(k.dbiases[i] + c);
                for (int64_t r = 0; r < rows; ++r) {
                    const int64_t here = r * pitch + c;
                    const Vec<T> angle = load<T>(k.angles[i] + here);
                    Vec<T> da = sine<T, true>(angle * freq) * load<T>(k.dh + here);
                    of_freq += da * angle;
                    da *= freq;
                    of_bias += da;
                    store<T>(k.da + here, da);
                }
                store<T>(k.dfreq + c, of_freq);
                store<T>(k.dbiases[i] + c, of_bias);
            }
            const int64_t in = i ? W : E, in_pitch = padded<T>(in);
            multiply<Full<T>>(
                W, in_pitch, rows, {k.da, 1, pitch}, {i ? k.hidden[i - 1] : k.z, in_pitch, P},
                k.dweights[i], in_pitch, {true, nullptr}
            );
            const Right<T> back = packed<Full<T>>(w.back[i], W);
            if (i)
                multiply<Full<T>>(rows, pitch, W, {k.da, pitch, 1}, back, k.dh, pitch, {false, nullptr});
            else if (p.dz)
                multiply<Full<T>>(rows, E, W, {k.da, pitch, 1}, back, p.dz + at * E, E, {false, nullptr});
        }
    }
}

template <class T>
void filter_sums(const Filter<T>& p, int64_t workers, T* memory, int64_t each) {
    for (int64_t one = 0; one < workers; ++one) {
        Arena<T> arena(memory + one * each);
        const FilterWork<T> k(p, arena, true);
        const int64_t W = p.width, pitch = padded<T>(W);
        const bool add = one > 0;
        for (int64_t i = 0; i < p.layers; ++i) {
            const int64_t in = i ? W : p.features;
            add_matrix<T>(k.dweights[i], padded<T>(in), W, in, p.dweights[i], add);
            add_matrix<T>(k.dbiases[i], pitch, 1, W, p.dbiases[i], add);
        }
        add_matrix<T>(k.dlast, pitch, p.channels, W, p.dlast, add);
        add_matrix<T>(k.dfreq, pitch, 1, W, p.dfreq, add);
    }
}

}  // namespace MB_SET
}  // namespace megabase
