// The selective scan, forward and backward. Lanes of a vector are neighbouring channels.
//
// Positions are worked in tiles. Between tiles the states of a block of channels rest in memory;
// inside, they stay in registers where there are 16 of them. The backward pass takes the state
// that enters a tile from the forward pass, and computes the tile's other states and decays again.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace megabase {
namespace MB_SET {

// Channels of one block, and the lanes of it that exist.
template <class T>
struct Block {
    int64_t channel;
    int count;

    Block(const Scan<T>& p, int64_t index) : channel(index * lanes<T>) {
        const int64_t left = p.channels - channel;
        count = left < lanes<T> ? int(left) : lanes<T>;
    }
    MB_INLINE Vec<T> load(const T* row) const { return load_part<T>(row + channel, count); }
    MB_INLINE void store(T* row, Vec<T> value) const { store_part<T>(row + channel, value, count); }
    MB_INLINE Vec<T> option(const T* row) const { return row ? load(row) : Vec<T>{}; }
};

// (E, N) <-> (N, lanes), times a factor.
template <class T>
void gather_states(const Block<T>& block, const T* from_EN, int64_t states, T factor, Vec<T>* to_N) {
    for (int64_t n = 0; n < states; ++n) {
        Vec<T> value{};
        for (int i = 0; i < block.count; ++i) value[i] = from_EN[(block.channel + i) * states + n] * factor;
        to_N[n] = value;
    }
}

template <class T>
void scatter_states(const Block<T>& block, const Vec<T>* from_N, int64_t states, T* to_EN) {
    for (int64_t n = 0; n < states; ++n)
        for (int i = 0; i < block.count; ++i) to_EN[(block.channel + i) * states + n] = from_N[n][i];
}

// Step size at one position, and its slope with respect to what softplus gets.
template <class T>
MB_INLINE Vec<T> step_size(const Scan<T>& p, Vec<T> raw, Vec<T>& slope) {
    if (p.softplus) return softplus<T>(raw, slope);
    slope = all<T>(T(1));
    return raw;
}

// What a tile needs of every position before the recurrence. A loop of its own: inside the
// recurrence its long chain of dependent operations would hold up everything else.
template <class T>
struct Forward {
    Vec<T> step, entering, y;
};

// Makes `at[k]` of every position; `slope` only for the backward pass.
template <class T, bool BACKWARD, class At>
MB_INLINE void prepare(
    const Scan<T>& p, At* at, Vec<T>* slope, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block
) {
    const Vec<T> bias = block.option(p.bias), skip = block.option(p.D);
    for (int64_t k = 0; k < count; ++k) {
        Vec<T> found;
        const Vec<T> raw = block.load(p.delta.at(b, begin + k)) + bias;
        const Vec<T> step = step_size<T>(p, raw, found), u = block.load(p.u.at(b, begin + k));
        at[k].step = step, at[k].entering = step * u, at[k].y = skip * u;
        if (BACKWARD) slope[k] = found;
    }
}

// The block that is worked next, in this tile or another. Its rows are fetched meanwhile: one line
// of each row, far apart, is no pattern that processors foresee.
struct Next {
    int64_t begin, channel;

    template <class T>
    MB_INLINE void fetch(const Rows<const T>& rows, int64_t b, int64_t k) const {
        if (rows) __builtin_prefetch(rows.at(b, begin + k) + channel, 0, 2);
    }
    template <class T>
    MB_INLINE void fetch(const Rows<T>& rows, int64_t b, int64_t k) const {
        if (rows) __builtin_prefetch(rows.at(b, begin + k) + channel, 1, 2);
    }
};

// NS states; 0 when they are only known at run time.
template <class T, int NS>
MB_INLINE void forward_tile(
    const Scan<T>& p, Forward<T>* w, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block, const Next& next, const Vec<T>* rate, Vec<T>* state
) {
    const int64_t states = NS ? NS : p.states;
    prepare<T, false>(p, w, nullptr, b, begin, count, block);
    Vec<T> held[NS ? NS : 1];
    Vec<T>* s = NS ? held : state;
    if constexpr (NS > 0)
        for (int n = 0; n < NS; ++n) held[n] = state[n];
    for (int64_t k = 0; k < count; ++k) {
        const Vec<T> step = w[k].step, entering = w[k].entering;
        const T *B = p.B.at(b, begin + k), *C = p.C.at(b, begin + k);
        next.fetch(p.delta, b, k), next.fetch(p.u, b, k), next.fetch(p.z, b, k);
        next.fetch(p.y, b, k);
        Vec<T> y = w[k].y, odd{};
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) {
            s[n] = power_of_two<T>(step * rate[n]) * s[n] + entering * B[n];
            (n % 2 ? odd : y) += s[n] * C[n];
        }
        w[k].y = y + odd;
    }
    if constexpr (NS > 0)
        for (int n = 0; n < NS; ++n) state[n] = held[n];
    for (int64_t k = 0; k < count; ++k) {
        Vec<T> y = w[k].y;
        if (p.z) {
            const Vec<T> z = block.load(p.z.at(b, begin + k));
            y *= z * sigmoid<T>(z);
        }
        block.store(p.y.at(b, begin + k), y);
    }
}

template <class T>
int64_t scan_forward_workspace(const Scan<T>& p, int64_t blocks) {
    return (2 * blocks * p.states + 3 * p.steps) * lanes<T>;
}

template <class T, int NS>
void scan_forward_states(const Scan<T>& p, int64_t b, int64_t first, int64_t last, T* work) {
    const int64_t N = p.states, tiles = (p.length + p.steps - 1) / p.steps;
    Vec<T>* rates = reinterpret_cast<Vec<T>*>(work);
    Vec<T>* states = rates + (last - first) * N;
    Forward<T>* w = reinterpret_cast<Forward<T>*>(states + (last - first) * N);
    for (int64_t i = first; i < last; ++i) {
        const Block<T> block(p, i);
        gather_states<T>(block, p.A, N, log2_e<T>, rates + (i - first) * N);
        Vec<T>* state = states + (i - first) * N;
        if (p.initial)
            gather_states<T>(block, p.initial + b * p.channels * N, N, T(1), state);
        else
            for (int64_t n = 0; n < N; ++n) state[n] = Vec<T>{};
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t begin = tile * p.steps;
        const int64_t count = begin + p.steps < p.length ? p.steps : p.length - begin;
        for (int64_t i = first; i < last; ++i) {
            const Block<T> block(p, i);
            Vec<T>* state = states + (i - first) * N;
            if (p.kept) {
                T* kept = p.kept + (b * tiles + tile) * N * p.channels;
                for (int64_t n = 0; n < N; ++n) block.store(kept + n * p.channels, state[n]);
            }
            const Next next = i + 1 < last ? Next{begin, (i + 1) * lanes<T>}
                                           : Next{begin + count, first * lanes<T>};
            forward_tile<T, NS>(
                p, w, b, begin, count, block, next, rates + (i - first) * N, state
            );
        }
    }
    for (int64_t i = first; i < last; ++i)
        scatter_states<T>(
            Block<T>(p, i), states + (i - first) * N, N, p.final_state + b * p.channels * N
        );
}

template <class T>
void scan_forward(const Scan<T>& p, int64_t b, int64_t first, int64_t last, T* work) {
    if (p.states == 16)
        scan_forward_states<T, 16>(p, b, first, last, work);
    else
        scan_forward_states<T, 0>(p, b, first, last, work);
}

// One lane-wide block of channels: exp(step * rate) at every position and state, summed.
template <class T>
T exponentials(const T* step, const T* rate, int64_t positions, int64_t states) {
    Vec<T> total{}, other{};
    for (int64_t t = 0; t < positions; ++t) {
        const Vec<T> now = load<T>(step + t * lanes<T>);
        for (int64_t n = 0; n + 2 <= states; n += 2) {
            total += power_of_two<T>(now * load<T>(rate + n * lanes<T>));
            other += power_of_two<T>(now * load<T>(rate + (n + 1) * lanes<T>));
        }
    }
    return sum<T>(total + other);
}

template <class T>
void exponential_of(const T* x, T* y, int64_t count) {
    for (int64_t i = 0; i < count; i += lanes<T>) {
        const int part = count - i < lanes<T> ? int(count - i) : lanes<T>;
        store_part<T>(y + i, exponential<T>(load_part<T>(x + i, part)), part);
    }
}

}  // namespace MB_SET
}  // namespace megabase
