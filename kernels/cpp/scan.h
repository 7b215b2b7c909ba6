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
struct Steps {
    Vec<T> *step, *slope, *entering, *y;  // (T,) each; slope only for the backward pass
};

template <class T, bool BACKWARD>
MB_INLINE void prepare(
    const Scan<T>& p, const Steps<T>& w, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block
) {
    const Vec<T> bias = block.option(p.bias), skip = block.option(p.D);
    for (int64_t k = 0; k < count; ++k) {
        Vec<T> slope;
        const Vec<T> raw = block.load(p.delta.at(b, begin + k)) + bias;
        const Vec<T> step = step_size<T>(p, raw, slope), u = block.load(p.u.at(b, begin + k));
        w.step[k] = step, w.entering[k] = step * u, w.y[k] = skip * u;
        if (BACKWARD) w.slope[k] = slope;
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
    const Scan<T>& p, const Steps<T>& w, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block, const Next& next, const Vec<T>* rate, Vec<T>* state
) {
    const int64_t states = NS ? NS : p.states;
    prepare<T, false>(p, w, b, begin, count, block);
    Vec<T> held[NS ? NS : 1];
    Vec<T>* s = NS ? held : state;
    if constexpr (NS > 0)
        for (int n = 0; n < NS; ++n) held[n] = state[n];
    for (int64_t k = 0; k < count; ++k) {
        const Vec<T> step = w.step[k], entering = w.entering[k];
        const T *B = p.B.at(b, begin + k), *C = p.C.at(b, begin + k);
        next.fetch(p.delta, b, k), next.fetch(p.u, b, k), next.fetch(p.z, b, k);
        next.fetch(p.y, b, k);
        Vec<T> y = w.y[k], odd{};
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) {
            s[n] = power_of_two<T>(step * rate[n]) * s[n] + entering * B[n];
            (n % 2 ? odd : y) += s[n] * C[n];
        }
        w.y[k] = y + odd;
    }
    if constexpr (NS > 0)
        for (int n = 0; n < NS; ++n) state[n] = held[n];
    for (int64_t k = 0; k < count; ++k) {
        Vec<T> y = w.y[k];
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
    Vec<T>* rest = states + (last - first) * N;
    const Steps<T> w = {rest, nullptr, rest + p.steps, rest + 2 * p.steps};
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

// Memory of one task of the backward pass. T is the number of positions in a tile.
template <class T>
struct Work {
    // For each block of channels: (N,), (N,), (N,), and sums over positions.
    Vec<T> *rate, *carry, *dA, *dD, *dbias;
    // For one block and tile: (T, N), (T + 1, N) with the entering state first, and (T,) each.
    Steps<T> steps;
    Vec<T> *decay, *state, *dy, *dentering, *dlog;
    // Sums over the blocks, (T, N), lane by lane.
    Vec<T> *sum_B, *sum_C;

    static int64_t size(const Scan<T>& p, int64_t blocks) {
        const int64_t N = p.states;
        return blocks * (3 * N + 2) + p.steps * (4 * N + 7) + N;
    }
    Work(const Scan<T>& p, int64_t blocks, T* memory) {
        const int64_t N = p.states;
        Vec<T>* next = reinterpret_cast<Vec<T>*>(memory);
        auto take = [&next](int64_t count) { Vec<T>* here = next; next += count; return here; };
        rate = take(blocks * N), carry = take(blocks * N), dA = take(blocks * N);
        dD = take(blocks), dbias = take(blocks);
        decay = take(p.steps * N), state = take((p.steps + 1) * N);
        sum_B = take(p.steps * N), sum_C = take(p.steps * N);
        steps.step = take(p.steps), steps.slope = take(p.steps);
        steps.entering = take(p.steps), steps.y = take(p.steps);
        dy = take(p.steps), dentering = take(p.steps), dlog = take(p.steps);
    }
};

template <class T>
int64_t scan_backward_workspace(const Scan<T>& p, int64_t blocks) {
    return Work<T>::size(p, blocks) * lanes<T>;
}

// States and decays of a tile again, and what hangs on the gate.
template <class T, int NS>
MB_INLINE void again(
    const Scan<T>& p, const Work<T>& w, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block, const Next& next, const Vec<T>* rate, Vec<T>& dD
) {
    const int64_t states = NS ? NS : p.states;
    prepare<T, true>(p, w.steps, b, begin, count, block);
    for (int64_t k = 0; k < count; ++k) {
        const Vec<T> step = w.steps.step[k], entering = w.steps.entering[k];
        const T *B = p.B.at(b, begin + k), *C = p.C.at(b, begin + k);
        next.fetch(p.delta, b, k), next.fetch(p.u, b, k), next.fetch(p.z, b, k);
        next.fetch(p.dy, b, k), next.fetch(p.du, b, k), next.fetch(p.ddelta, b, k);
        next.fetch(p.dz, b, k);
        const Vec<T>* before = w.state + k * states;
        Vec<T> *s = w.state + (k + 1) * states, *decay = w.decay + k * states;
        Vec<T> y = w.steps.y[k], odd{};
#pragma GCC unroll 16
        for (int64_t n = 0; n < states; ++n) {
            const Vec<T> a = power_of_two<T>(step * rate[n]);
            const Vec<T> now = a * before[n] + entering * B[n];
            (n % 2 ? odd : y) += now * C[n];
            decay[n] = a;
            s[n] = now;
        }
        w.steps.y[k] = y + odd;
    }
    for (int64_t k = 0; k < count; ++k) {
        const int64_t t = begin + k;
        Vec<T> dy = block.load(p.dy.at(b, t));
        if (p.z) {
            const Vec<T> z = block.load(p.z.at(b, t));
            const Vec<T> part = sigmoid<T>(z);
            const Vec<T> gate = z * part;
            block.store(p.dz.at(b, t), dy * w.steps.y[k] * (part + gate * (T(1) - part)));
            dy *= gate;
        }
        dD += dy * block.load(p.u.at(b, t));
        w.dy[k] = dy, w.dentering[k] = w.dlog[k] = Vec<T>{};
    }
}

// The recurrence backwards, for CH states from `from` on: CH of them fit into registers with the
// sums of dA. dstate[t] = C[t] dy[t] + decay[t + 1] dstate[t + 1].
template <class T, int CH>
MB_INLINE void against(
    const Scan<T>& p, const Work<T>& w, int64_t b, int64_t begin, int64_t count, int64_t from,
    const Vec<T>* rate, Vec<T>* carry, Vec<T>* dA
) {
    const int64_t states = p.states;
    Vec<T> c[CH], rates_sum[CH];
#pragma GCC unroll 16
    for (int n = 0; n < CH; ++n) c[n] = carry[from + n], rates_sum[n] = dA[from + n];
    for (int64_t k = count - 1; k >= 0; --k) {
        const T *B = p.B.at(b, begin + k) + from, *C = p.C.at(b, begin + k) + from;
        const Vec<T>*before = w.state + k * states + from, *s = before + states;
        const Vec<T>* decay = w.decay + k * states + from;
        Vec<T>*sum_B = w.sum_B + k * states + from, *sum_C = w.sum_C + k * states + from;
        const Vec<T> dy = w.dy[k], entering = w.steps.entering[k], step = w.steps.step[k];
        Vec<T> dentering = w.dentering[k], dlog = w.dlog[k];
#pragma GCC unroll 16
        for (int n = 0; n < CH; ++n) {
            const Vec<T> g = c[n] + dy * C[n];
            sum_C[n] += dy * s[n];
            sum_B[n] += g * entering;
            dentering += g * B[n];
            c[n] = g * decay[n];
            const Vec<T> h = c[n] * before[n];
            dlog += h * rate[from + n];
            rates_sum[n] += h * step;
        }
        w.dentering[k] = dentering, w.dlog[k] = dlog;
    }
#pragma GCC unroll 16
    for (int n = 0; n < CH; ++n) carry[from + n] = c[n], dA[from + n] = rates_sum[n];
}

template <class T, int NS>
void scan_backward_states(
    const Scan<T>& p, int64_t b, int64_t first, int64_t last, int64_t group, T* memory
) {
    const int64_t N = p.states, E = p.channels, tiles = (p.length + p.steps - 1) / p.steps;
    const Work<T> w(p, last - first, memory);
    for (int64_t i = first; i < last; ++i) {
        const Block<T> block(p, i);
        const int64_t at = (i - first) * N;
        gather_states<T>(block, p.A, N, log2_e<T>, w.rate + at);
        for (int64_t n = 0; n < N; ++n) w.carry[at + n] = w.dA[at + n] = Vec<T>{};
        if (p.dfinal) gather_states<T>(block, p.dfinal + b * E * N, N, T(1), w.carry + at);
        w.dD[i - first] = w.dbias[i - first] = Vec<T>{};
    }
    for (int64_t tile = tiles - 1; tile >= 0; --tile) {
        const int64_t begin = tile * p.steps;
        const int64_t count = begin + p.steps < p.length ? p.steps : p.length - begin;
        for (int64_t k = 0; k < count * N; ++k) w.sum_B[k] = w.sum_C[k] = Vec<T>{};
        for (int64_t i = first; i < last; ++i) {
            const Block<T> block(p, i);
            const int64_t at = (i - first) * N;
            const T* kept = p.kept + (b * tiles + tile) * N * E;
            for (int64_t n = 0; n < N; ++n) w.state[n] = block.load(kept + n * E);
            const Next next = i + 1 < last ? Next{begin, (i + 1) * lanes<T>}
                                           : Next{begin - p.steps, first * lanes<T>};
            again<T, NS>(p, w, b, begin, count, block, next, w.rate + at, w.dD[i - first]);
            int64_t n = 0;
            for (; n + 8 <= N; n += 8)
                against<T, 8>(p, w, b, begin, count, n, w.rate + at, w.carry + at, w.dA + at);
            for (; n < N; ++n)
                against<T, 1>(p, w, b, begin, count, n, w.rate + at, w.carry + at, w.dA + at);
            const Vec<T> skip = block.option(p.D);
            Vec<T> dbias = w.dbias[i - first];
            for (int64_t k = 0; k < count; ++k) {
                const int64_t t = begin + k;
                const Vec<T> u = block.load(p.u.at(b, t));
                block.store(p.du.at(b, t), w.dentering[k] * w.steps.step[k] + w.dy[k] * skip);
                // The rates were those of powers of two.
                const Vec<T> draw = (w.dlog[k] * ln_2<T> + w.dentering[k] * u) * w.steps.slope[k];
                block.store(p.ddelta.at(b, t), draw);
                dbias += draw;
            }
            w.dbias[i - first] = dbias;
        }
        const int64_t row = ((group * p.batch + b) * p.length + begin) * N;
        store_sums<T>(p.dB + row, w.sum_B, count * N);
        store_sums<T>(p.dC + row, w.sum_C, count * N);
    }
    for (int64_t i = first; i < last; ++i) {
        const Block<T> block(p, i);
        const int64_t at = (i - first) * N;
        scatter_states<T>(block, w.dA + at, N, p.dA + b * E * N);
        block.store(p.dD + b * E, w.dD[i - first]);
        block.store(p.dbias + b * E, w.dbias[i - first]);
        if (p.dinitial) scatter_states<T>(block, w.carry + at, N, p.dinitial + b * E * N);
    }
}

template <class T>
void scan_backward(
    const Scan<T>& p, int64_t b, int64_t first, int64_t last, int64_t group, T* work
) {
    if (p.states == 16)
        scan_backward_states<T, 16>(p, b, first, last, group, work);
    else
        scan_backward_states<T, 0>(p, b, first, last, group, work);
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
