// The selective scan backward. Lanes of a vector are neighbouring channels.
//
// Tiles of positions are worked from the last to the first, and inside one the states in chunks of
// a few: the decays and states of a chunk over a tile are computed again from the state that
// entered it, and used up at once, so that they never leave the first-level cache.
#pragma once

#include "scan.h"

namespace megabase {
namespace MB_SET {

// States of a chunk, and the positions whose sums over channels (dB and dC of every state of a
// chunk) fill a vector.
template <class T>
constexpr int CHUNK = lanes<T> >= 4 ? 2 : 1;
template <class T>
constexpr int GROUP = lanes<T> / (2 * CHUNK<T>);

// A block of channels at one position. What is used together lies together: arrays of their own,
// whole pages long, would meet in the same few places of the cache.
template <class T>
struct Backward {
    Vec<T> step, entering, y;
    Vec<T> dy, dentering, dlog;  // gradients of y, of step * u and of the exponents
};

// One state of it: the decay, and the state before the position.
template <class T>
struct Again {
    Vec<T> decay, before;
};

// Memory of one task. T is the number of positions in a tile, in whole groups; N that of states,
// in whole chunks (what is too many does nothing: its rates and B and C are zero).
template <class T>
struct Work {
    static constexpr int CH = CHUNK<T>;
    int64_t chunks, steps;
    // For each block of channels: (N,) each, and sums over positions.
    Vec<T> *rate, *carry, *dA, *dD, *dbias;
    // For one block and tile, (T,) each; `gate` is what y is multiplied with for the gradient of z.
    Backward<T>* at;
    Vec<T> *slope, *gate;
    // For one chunk of them, (T, CHUNK).
    Again<T>* again;
    // For one tile, numbers (chunks, T, 2, CHUNK): B and C, and the sums of their gradients.
    T *BC, *sums;

    static int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }
    static int64_t size(const Scan<T>& p, int64_t blocks) {
        const int64_t N = whole(p.states, CH), T_ = whole(p.steps, GROUP<T>);
        return blocks * (3 * N + 2) + T_ * (8 + 2 * CH) + 2 * (N / CH) * (T_ / GROUP<T>);
    }
    Work(const Scan<T>& p, int64_t blocks, T* memory)
        : chunks(whole(p.states, CH) / CH), steps(whole(p.steps, GROUP<T>)) {
        const int64_t N = chunks * CH;
        Vec<T>* next = reinterpret_cast<Vec<T>*>(memory);
        auto take = [&next](int64_t count) { Vec<T>* here = next; next += count; return here; };
        rate = take(blocks * N), carry = take(blocks * N), dA = take(blocks * N);
        dD = take(blocks), dbias = take(blocks);
        at = reinterpret_cast<Backward<T>*>(take(6 * steps));
        slope = take(steps), gate = take(steps);
        again = reinterpret_cast<Again<T>*>(take(2 * steps * CH));
        BC = reinterpret_cast<T*>(take(chunks * (steps / GROUP<T>)));
        sums = reinterpret_cast<T*>(take(chunks * (steps / GROUP<T>)));
    }
};

template <class T>
int64_t scan_backward_workspace(const Scan<T>& p, int64_t blocks) {
    return Work<T>::size(p, blocks) * lanes<T>;
}

// B and C of a tile, chunk by chunk, and zeros where there are none.
template <class T>
void gather_BC(const Scan<T>& p, const Work<T>& w, int64_t b, int64_t begin, int64_t count) {
    constexpr int CH = CHUNK<T>;
    T* to = w.BC;
    for (int64_t chunk = 0; chunk < w.chunks; ++chunk)
        for (int64_t k = 0; k < w.steps; ++k, to += 2 * CH)
            for (int i = 0; i < CH; ++i) {
                const int64_t n = chunk * CH + i;
                const bool there = k < count && n < p.states;
                to[i] = there ? p.B.at(b, begin + k)[n] : T(0);
                to[CH + i] = there ? p.C.at(b, begin + k)[n] : T(0);
            }
}

template <class T>
void scatter_sums(const Scan<T>& p, const Work<T>& w, int64_t row, int64_t count) {
    constexpr int CH = CHUNK<T>;
    for (int64_t k = 0; k < count; ++k)
        for (int64_t n = 0; n < p.states; ++n) {
            const T* from = w.sums + (n / CH * w.steps + k) * 2 * CH + n % CH;
            p.dB[(row + k) * p.states + n] = from[0];
            p.dC[(row + k) * p.states + n] = from[CH];
        }
}

// What does not hang on the states: see `prepare`, and the gate.
template <class T>
MB_INLINE void prepare_backward(
    const Scan<T>& p, const Work<T>& w, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block
) {
    prepare<T, true>(p, w.at, w.slope, b, begin, count, block);
    for (int64_t k = 0; k < count; ++k) {
        Vec<T> dy = block.load(p.dy.at(b, begin + k));
        if (p.z) {
            const Vec<T> z = block.load(p.z.at(b, begin + k));
            const Vec<T> part = sigmoid<T>(z);
            const Vec<T> gate = z * part;
            w.gate[k] = dy * (part + gate * (T(1) - part));
            dy *= gate;
        }
        w.at[k].dy = dy, w.at[k].dentering = w.at[k].dlog = Vec<T>{};
    }
    // The last group of the last tile may be incomplete: nothing enters there and nothing decays.
    for (int64_t k = count; k < w.steps; ++k) w.at[k] = Backward<T>{};
}

// The rows of the tile that is worked next, fetched meanwhile, some with each block of channels and
// whole: fetching a line of each row for the next block changed nothing where memory was the limit.
template <class T>
class Ahead {
  public:
    // The share of one of `blocks` blocks, in `calls` calls of `fetch`; none when there are none.
    Ahead(const Scan<T>& p, int64_t b, const Next& next, int64_t block, int64_t blocks, int64_t calls)
        : blocks_(blocks), begin_(p.steps * block / blocks), end_(p.steps * (block + 1) / blocks) {
        auto add = [&](const auto& r) {
            if (!r || next.begin < 0 || begin_ == end_ || calls == 0) return;
            rows_[count_] = r.at(b, next.begin) + next.channel, strides_[count_++] = r.row;
        };
        add(p.delta), add(p.u), add(p.z), add(p.dy), add(p.du), add(p.ddelta), add(p.dz);
        if (count_) each_ = (count_ * (end_ - begin_) * blocks + calls - 1) / calls;
        row_ = begin_;
    }
    MB_INLINE void fetch() {
        for (int64_t i = 0; i < each_ && array_ < count_; ++i) {
            __builtin_prefetch(rows_[array_] + row_ * strides_[array_] + block_ * lanes<T>, 0, 2);
            if (++block_ < blocks_) continue;
            block_ = 0;
            if (++row_ < end_) continue;
            row_ = begin_, ++array_;
        }
    }

  private:
    const T* rows_[7];
    int64_t strides_[7];
    int count_ = 0, array_ = 0;
    int64_t blocks_, begin_, end_, each_ = 0, row_, block_ = 0;
};

// One chunk of states of one block of channels over a tile.
template <class T>
struct Chunk {
    static constexpr int CH = CHUNK<T>;
    Backward<T>* at;
    Again<T>* again;
    const T* BC;
    Vec<T> rate[CH], state[CH], carry[CH], dA[CH];

    MB_INLINE Chunk(const Work<T>& w, int64_t chunk)
        : at(w.at), again(w.again), BC(w.BC + chunk * w.steps * 2 * CH) {}

    // The recurrence again.
    template <bool GATED>
    MB_INLINE void forward(int64_t count, Ahead<T>& ahead) {
        for (int64_t k = 0; k < count; ++k) {
            const T *B = BC + k * 2 * CH, *C = B + CH;
            ahead.fetch();
            const Vec<T> step = at[k].step, entering = at[k].entering;
            Vec<T> y = at[k].y;
#pragma GCC unroll 2
            for (int n = 0; n < CH; ++n) {
                const Vec<T> a = power_of_two<T>(step * rate[n]);
                again[k * CH + n] = {a, state[n]};
                state[n] = a * state[n] + entering * B[n];
                if (GATED) y += state[n] * C[n];
            }
            if (GATED) at[k].y = y;
        }
    }

    // The recurrence backwards, dstate[t] = C[t] dy[t] + decay[t + 1] dstate[t + 1], over COUNT
    // positions that end with k + COUNT - 1. Gives the sums over channels of what B and C get,
    // (COUNT, 2, CHUNK) of them in neighbouring lanes; those that are not yet full sums fill the
    // vector.
    template <int COUNT>
    MB_INLINE Vec<T> backward(int64_t k) {
        if constexpr (COUNT > 1) {
            const Vec<T> later = backward<COUNT / 2>(k + COUNT / 2);
            return pair_sums<T>(backward<COUNT / 2>(k), later);
        } else {
            const T *B = BC + k * 2 * CH, *C = B + CH;
            const Vec<T> dy = at[k].dy;
            Vec<T> dB[CH], dC[CH], dentering = at[k].dentering, dlog = at[k].dlog;
#pragma GCC unroll 2
            for (int n = 0; n < CH; ++n) {
                const Vec<T> g = carry[n] + dy * C[n];
                dC[n] = dy * state[n];
                dB[n] = at[k].entering * g;
                dentering += g * B[n];
                state[n] = again[k * CH + n].before;
                carry[n] = g * again[k * CH + n].decay;
                const Vec<T> h = carry[n] * state[n];
                dlog += h * rate[n];
                dA[n] += h * at[k].step;
            }
            at[k].dentering = dentering, at[k].dlog = dlog;
            if constexpr (CH == 1)
                return pair_sums<T>(dB[0], dC[0]);
            else
                return pair_sums<T>(pair_sums<T>(dB[0], dB[1]), pair_sums<T>(dC[0], dC[1]));
        }
    }
};

template <class T>
MB_INLINE void backward_chunk(
    const Work<T>& w, int64_t chunk, int64_t at, bool gated, Ahead<T>& ahead,
    const Vec<T>* kept
) {
    constexpr int CH = CHUNK<T>;
    Chunk<T> c(w, chunk);
#pragma GCC unroll 2
    for (int n = 0; n < CH; ++n) {
        c.rate[n] = w.rate[at + n], c.carry[n] = w.carry[at + n], c.dA[n] = w.dA[at + n];
        c.state[n] = kept[n];
    }
    if (gated)
        c.template forward<true>(w.steps, ahead);
    else
        c.template forward<false>(w.steps, ahead);
    T* sums = w.sums + chunk * w.steps * 2 * CH;
    for (int64_t k = w.steps - GROUP<T>; k >= 0; k -= GROUP<T>) {
        const Vec<T> found = c.template backward<GROUP<T>>(k);
        store<T>(sums + k * 2 * CH, load<T>(sums + k * 2 * CH) + found);
    }
#pragma GCC unroll 2
    for (int n = 0; n < CH; ++n) w.carry[at + n] = c.carry[n], w.dA[at + n] = c.dA[n];
}

// Gradients of u, delta and z of a tile.
template <class T>
MB_INLINE void finish_backward(
    const Scan<T>& p, const Work<T>& w, int64_t b, int64_t begin, int64_t count,
    const Block<T>& block, Vec<T>& dD, Vec<T>& dbias
) {
    const Vec<T> skip = block.option(p.D);
    for (int64_t k = 0; k < count; ++k) {
        const int64_t t = begin + k;
        const Vec<T> u = block.load(p.u.at(b, t)), dy = w.at[k].dy, dentering = w.at[k].dentering;
        block.store(p.du.at(b, t), dentering * w.at[k].step + dy * skip);
        // The rates were those of powers of two.
        const Vec<T> draw = (w.at[k].dlog * ln_2<T> + dentering * u) * w.slope[k];
        block.store(p.ddelta.at(b, t), draw);
        if (p.z) block.store(p.dz.at(b, t), w.gate[k] * w.at[k].y);
        dbias += draw, dD += dy * u;
    }
}

template <class T>
void scan_backward(
    const Scan<T>& p, int64_t b, int64_t first, int64_t last, int64_t group, T* memory
) {
    constexpr int CH = CHUNK<T>;
    const int64_t N = p.states, E = p.channels, tiles = (p.length + p.steps - 1) / p.steps;
    const Work<T> w(p, last - first, memory);
    const int64_t each = w.chunks * CH;
    for (int64_t i = 0; i < (last - first) * each; ++i) w.rate[i] = w.carry[i] = w.dA[i] = Vec<T>{};
    for (int64_t i = first; i < last; ++i) {
        const Block<T> block(p, i);
        const int64_t at = (i - first) * each;
        gather_states<T>(block, p.A, N, log2_e<T>, w.rate + at);
        if (p.dfinal) gather_states<T>(block, p.dfinal + b * E * N, N, T(1), w.carry + at);
        w.dD[i - first] = w.dbias[i - first] = Vec<T>{};
    }
    for (int64_t tile = tiles - 1; tile >= 0; --tile) {
        const int64_t begin = tile * p.steps;
        const int64_t count = begin + p.steps < p.length ? p.steps : p.length - begin;
        gather_BC(p, w, b, begin, count);
        for (int64_t k = 0; k < w.chunks * w.steps * 2 * CH; ++k) w.sums[k] = T(0);
        for (int64_t i = first; i < last; ++i) {
            const Block<T> block(p, i);
            const T* kept = p.kept + (b * tiles + tile) * N * E;
            const T* next_kept = i + 1 < last ? kept + (i + 1) * lanes<T>
                                              : kept - N * E + first * lanes<T>;
            const Next next = {begin - p.steps, first * lanes<T>};
            Ahead<T> ahead(p, b, next, i - first, last - first, w.chunks * w.steps);
            prepare_backward<T>(p, w, b, begin, count, block);
            for (int64_t chunk = 0; chunk < w.chunks; ++chunk) {
                Vec<T> entering[CH];
                for (int n = 0; n < CH; ++n) {
                    const int64_t state = chunk * CH + n;
                    entering[n] = state < N ? block.load(kept + state * E) : Vec<T>{};
                    __builtin_prefetch(next_kept + state * E, 0, 2);
                }
                const int64_t at = (i - first) * each + chunk * CH;
                backward_chunk<T>(w, chunk, at, bool(p.z), ahead, entering);
            }
            finish_backward<T>(p, w, b, begin, count, block, w.dD[i - first], w.dbias[i - first]);
        }
        scatter_sums(p, w, (group * p.batch + b) * p.length + begin, count);
    }
    for (int64_t i = first; i < last; ++i) {
        const Block<T> block(p, i);
        const int64_t at = (i - first) * each;
        scatter_states<T>(block, w.dA + at, N, p.dA + b * E * N);
        block.store(p.dD + b * E, w.dD[i - first]);
        block.store(p.dbias + b * E, w.dbias[i - first]);
        if (p.dinitial) scatter_states<T>(block, w.carry + at, N, p.dinitial + b * E * N);
    }
}

}  // namespace MB_SET
}  // namespace megabase
