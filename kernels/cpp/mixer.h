// The Hyena mixer without its transforms: LayerNorm, projection, short convolution and gates in
// front of them, gate and output projection behind them, block of positions by block of positions.
// What the transforms read and write is (batch, width, length); all else stays in the cache, and
// the backward pass computes it again.
#pragma once

#include "rows.h"

namespace megabase {
namespace MB_SET {


// Row length of a tile that is turned: not a power of two, whose rows share places of the cache.
template <class T>
constexpr int64_t TURNED = PANEL<T> + lanes<T>;

template <class T>
struct MixerWeights {
    T *in[3], *b_in, *taps, *bias;       // (D, D) each, (3, D), (3, K, D), (3, D)
    T *out, *b_out, *out_back, *in_back;  // forward; backward

    MixerWeights(const Mixer<T>& p, Arena<T>& arena, bool backward) {
        const int64_t D = p.width, pitch = padded<T>(D);
        for (T*& part : in) part = arena.take(packed_size<T>(D, D));
        b_in = arena.take(3 * pitch), bias = arena.take(3 * pitch);
        taps = arena.take(3 * p.taps * pitch), b_out = arena.take(pitch);
        out = backward ? nullptr : arena.take(packed_size<T>(D, D));
        out_back = backward ? arena.take(packed_size<T>(D, D)) : nullptr;
        in_back = backward ? arena.take(packed_size<T>(3 * D, D)) : nullptr;
    }
    void fill(const Mixer<T>& p) const {
        const int64_t D = p.width, pitch = padded<T>(D);
        for (int part = 0; part < 3; ++part) {
            pack<T>(p.w_in + part * D * D, 1, D, D, D, in[part]);
            pack<T>(p.b_in + part * D, 0, 1, 1, D, b_in + part * pitch);
            pack<T>(p.b + part * D, 0, 1, 1, D, bias + part * pitch);
            for (int64_t k = 0; k < p.taps; ++k)
                pack<T>(p.w + part * D * p.taps + k, 0, p.taps, 1, D, taps + (part * p.taps + k) * pitch);
        }
        pack<T>(p.b_out, 0, 1, 1, D, b_out);
        if (out) pack<T>(p.w_out, 1, D, D, D, out);
        if (out_back) pack<T>(p.w_out, D, 1, D, D, out_back);
        if (in_back) pack<T>(p.w_in, D, 1, 3 * D, D, in_back);
    }
};

// One block: what it takes of its neighbours, and its arrays.
template <class T>
struct MixerWork {
    T *dw_in, *db_in, *dw, *db, *dw_out, *db_out, *dweight, *dbias;
    T *h, *dy, *dh, *g, *p[3], *ds[3], *dp[3], *dg, *tile, *other;
    int64_t sums = 0;

    MixerWork(const Mixer<T>& m, Arena<T>& arena, bool backward) {
        const int64_t D = m.width, pitch = padded<T>(D), rows = BLOCK_ROWS + 2 * (m.taps - 1);
        if (backward) {
            dw_in = arena.take(3 * D * pitch), dw_out = arena.take(D * pitch);
            db_in = arena.take(3 * pitch), db = arena.take(3 * pitch);
            dw = arena.take(3 * m.taps * pitch), db_out = arena.take(pitch);
            dweight = arena.take(pitch), dbias = arena.take(pitch);
            sums = arena.used();
            dh = arena.take(BLOCK_ROWS * pitch);
            for (T*& part : ds) part = arena.take(rows * PANEL<T>);
            for (T*& part : dp) part = arena.take(BLOCK_ROWS * PANEL<T>);
        }
        h = arena.take(rows * pitch), dy = arena.take(rows * pitch), g = arena.take(rows * pitch);
        for (T*& part : p) part = arena.take(rows * PANEL<T>);
        dg = arena.take(rows * PANEL<T>);
        tile = arena.take(rows * TURNED<T>), other = arena.take(rows * TURNED<T>);
    }
};

template <class T>
int64_t mixer_weights_size(const Mixer<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    MixerWeights<T> weights(p, arena, backward);
    return arena.used();
}

template <class T>
void mixer_pack(const Mixer<T>& p, bool backward, T* memory) {
    Arena<T> arena(memory);
    MixerWeights<T>(p, arena, backward).fill(p);
}

template <class T>
int64_t mixer_workspace(const Mixer<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    MixerWork<T> work(p, arena, backward);
    return arena.used();
}

// Positions from `start` to `stop`, those of them that lie in the sequence, and where they begin.
struct Stretch {
    int64_t start, stop, first, last;
    Stretch(int64_t from, int64_t to, int64_t length)
        : start(from), stop(to), first(from > 0 ? from : 0), last(to < length ? to : length) {}
    int64_t rows() const { return last - first; }
    int64_t shift() const { return first - start; }
};

// Projected channels c to c + PANEL of gates and value for the positions of `s`; zero outside of
// the sequence. `h` holds the normalised positions inside.
template <class T>
void project(
    const Mixer<T>& m, const MixerWeights<T>& w, const MixerWork<T>& k, Stretch s, int64_t c
) {
    const int64_t D = m.width, pitch = padded<T>(D);
    for (int part = 0; part < 3; ++part) {
        T* to = k.p[part];
        clear(to, s.shift() * PANEL<T>);
        multiply<T>(
            s.rows(), PANEL<T>, D, {k.h, pitch, 1}, packed<T>(w.in[part] + c * D, D),
            to + s.shift() * PANEL<T>, PANEL<T>, {false, w.b_in + part * pitch + c}
        );
        clear(to + (s.last - s.start) * PANEL<T>, (s.stop - s.last) * PANEL<T>);
    }
}

// One block of lanes of a part: its short convolution, which at row t reads rows t to t + K - 1 of
// the projected channels.
template <class T, int K>
struct Short {
    Vec<T> weight[K], bias;
    const T* rows;

    MB_INLINE Short(
        const Mixer<T>& m, const MixerWeights<T>& w, const MixerWork<T>& k, int part, int64_t c,
        int64_t i
    ) {
        const int64_t pitch = padded<T>(m.width);
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) weight[j] = load<T>(w.taps + (part * K + j) * pitch + c + i);
        bias = load<T>(w.bias + part * pitch + c + i);
        rows = k.p[part] + i;
    }
    MB_INLINE Vec<T> at(int64_t t) const {
        Vec<T> s = bias;
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) s += weight[j] * load<T>(rows + (t + j) * PANEL<T>);
        return s;
    }
};

// Everything in front of the transforms: the gated value into `u`; forward, the output gate into
// `out`; backward, the gradient of the transforms' result into `g`.
template <class T, int K>
void open_with_taps(
    const Mixer<T>& m, T* packed_weights, int64_t b, int64_t t0, int64_t t1, bool backward,
    T* memory
) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MixerWeights<T> w(m, of_weights, backward);
    const MixerWork<T> k(m, arena, backward);
    const int64_t D = m.width, L = m.length, pitch = padded<T>(D), rows = t1 - t0;
    const int64_t before = m.taps - 1 - m.after;
    const Stretch s(t0 - before, t1 + m.after, L);
    normalise<T>(m.norm, m.x + (b * L + s.first) * D, D, s.rows(), D, k.h, pitch);
    if (backward) copy_rows<T>(m.dy + (b * L + t0) * D, D, rows, D, k.dy, pitch);
    for (int64_t c = 0; c < D; c += PANEL<T>) {
        const int64_t some = D - c < PANEL<T> ? D - c : PANEL<T>;
        project<T>(m, w, k, s, c);
        if (backward)
            multiply<T>(
                rows, PANEL<T>, D, {k.dy, pitch, 1}, packed<T>(w.out_back + c * D, D), k.dg,
                PANEL<T>, {false, nullptr}
            );
        for (int64_t i = 0; i < some; i += W) {
            const int count = some - i < W ? int(some - i) : W;
            const Short<T, K> first_of(m, w, k, 0, c, i), gate_of(m, w, k, 1, c, i),
                value_of(m, w, k, 2, c, i);
            for (int64_t t = 0; t < rows; ++t) {
                const Vec<T> first = first_of.at(t), gate = gate_of.at(t), v = value_of.at(t);
                store<T>(k.tile + t * TURNED<T> + i, v * gate);
                if (backward)
                    store<T>(
                        k.other + t * TURNED<T> + i, first * load<T>(k.dg + t * PANEL<T> + i)
                    );
                else
                    store_part<T>(m.out + (b * L + t0 + t) * D + c + i, first, count);
            }
        }
        turn<T>(k.tile, TURNED<T>, rows, some, m.u + (b * D + c) * L + t0, L);
        if (backward) turn<T>(k.other, TURNED<T>, rows, some, m.g + (b * D + c) * L + t0, L);
    }
}

// Everything behind the transforms: `u` holds their result, `out` the output gate.
template <class T>
void mixer_close(
    const Mixer<T>& m, T* packed_weights, int64_t b, int64_t t0, int64_t t1, T* memory
) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MixerWeights<T> w(m, of_weights, false);
    const MixerWork<T> k(m, arena, false);
    const int64_t D = m.width, L = m.length, pitch = padded<T>(D), rows = t1 - t0;
    T* out = m.out + (b * L + t0) * D;
    for (int64_t c = 0; c < D; c += PANEL<T>) {
        const int64_t some = D - c < PANEL<T> ? D - c : PANEL<T>;
        turn_back<T>(m.u + (b * D + c) * L + t0, L, rows, some, k.tile, TURNED<T>);
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t i = 0; i < some; i += W) {
                const int count = some - i < W ? int(some - i) : W;
                const Vec<T> y = load_part<T>(k.tile + t * TURNED<T> + i, count);
                store<T>(k.g + t * pitch + c + i, y * load_part<T>(out + t * D + c + i, count));
            }
    }
    multiply<T>(rows, D, D, {k.g, pitch, 1}, packed<T>(w.out, D), out, D, {false, w.b_out});
}

// The gradients of everything in front of the transforms and behind them: `u` holds their result,
// `g` the gradient of what they read. Sums over positions are added at the start of `memory`.
template <class T, int K>
void backward_with_taps(
    const Mixer<T>& m, T* packed_weights, int64_t b, int64_t t0, int64_t t1, T* memory
) {
    constexpr int W = lanes<T>;
    constexpr int64_t P = PANEL<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MixerWeights<T> w(m, of_weights, true);
    const MixerWork<T> k(m, arena, true);
    const int64_t D = m.width, L = m.length, pitch = padded<T>(D), rows = t1 - t0;
    const int64_t after = m.after, before = K - 1 - after;
    // The gradient of a projected position comes from outputs around it, theirs from inputs around
    // those.
    const Stretch s(t0 - after, t1 + before, L);
    const Stretch wide(s.first - before, s.last + after, L);
    normalise<T>(m.norm, m.x + (b * L + wide.first) * D, D, wide.rows(), D, k.h, pitch);
    copy_rows<T>(m.dy + (b * L + s.first) * D, D, s.rows(), D, k.dy, pitch);
    const T* h = k.h + (t0 - wide.first) * pitch;
    const T* dy = k.dy + (t0 - s.first) * pitch;
    for (int64_t c = 0; c < D; c += P) {
        const int64_t some = D - c < P ? D - c : P;
        project<T>(m, w, k, wide, c);
        multiply<T>(
            s.rows(), P, D, {k.dy, pitch, 1}, packed<T>(w.out_back + c * D, D), k.dg, P,
            {false, nullptr}
        );
        turn_back<T>(m.u + (b * D + c) * L + s.first, L, s.rows(), some, k.tile, TURNED<T>);
        turn_back<T>(m.g + (b * D + c) * L + s.first, L, s.rows(), some, k.other, TURNED<T>);
        for (int part = 0; part < 3; ++part) {
            clear(k.ds[part], s.shift() * P);
            clear(k.ds[part] + (s.last - s.start) * P, (s.stop - s.last) * P);
        }
        for (int64_t i = 0; i < P; i += W) {
            const int64_t left = some - i;
            const int count = left >= W ? W : (left > 0 ? int(left) : 0);
            const Short<T, K> first_of(m, w, k, 0, c, i), gate_of(m, w, k, 1, c, i),
                value_of(m, w, k, 2, c, i);
            for (int64_t t = 0; t < s.rows(); ++t) {
                const Vec<T> y = load_part<T>(k.tile + t * TURNED<T> + i, count);
                const Vec<T> du = load_part<T>(k.other + t * TURNED<T> + i, count);
                const int64_t at = (s.shift() + t) * P + i;
                store<T>(k.ds[0] + at, y * load<T>(k.dg + t * P + i));
                store<T>(k.ds[1] + at, du * value_of.at(t));
                store<T>(k.ds[2] + at, du * gate_of.at(t));
                const int64_t inner = s.first + t - t0;
                if (inner >= 0 && inner < rows)
                    store<T>(k.g + inner * P + i, y * first_of.at(t));
            }
            for (int part = 0; part < 3; ++part) {
                // Row j of ds lies at position t0 - after + j; of p at s.first - before + j.
                const T* ds = k.ds[part] + i;
                const T* p = k.p[part] + i;
                T* dp = k.dp[part] + i;
                const int64_t ahead = t0 - s.first;
                Vec<T> bias{}, total{}, weight[K], of_weight[K] = {};
#pragma GCC unroll 8
                for (int j = 0; j < K; ++j)
                    weight[j] = load<T>(w.taps + (part * K + j) * pitch + c + i);
                for (int64_t t = 0; t < rows; ++t) {
                    Vec<T> value{};
#pragma GCC unroll 8
                    for (int j = 0; j < K; ++j)
                        value += weight[j] * load<T>(ds + (t + K - 1 - j) * P);
                    store<T>(dp + t * P, value);
                    total += value;
                    const Vec<T> slope = load<T>(ds + (t + after) * P);
                    bias += slope;
#pragma GCC unroll 8
                    for (int j = 0; j < K; ++j)
                        of_weight[j] += slope * load<T>(p + (ahead + t + j) * P);
                }
                add_to<T>(k.db_in + part * pitch + c + i, total);
                add_to<T>(k.db + part * pitch + c + i, bias);
#pragma GCC unroll 8
                for (int j = 0; j < K; ++j)
                    add_to<T>(k.dw + (part * K + j) * pitch + c + i, of_weight[j]);
            }
        }
        for (int part = 0; part < 3; ++part) {
            const int64_t channel = part * D + c;
            const Right<T> back{w.in_back + channel * P, P, 3 * D * P};
            multiply<T>(
                rows, pitch, some, {k.dp[part], P, 1}, back, k.dh, pitch, {channel > 0, nullptr}
            );
            if (m.sums)
                multiply<T>(
                    some, pitch, rows, {k.dp[part], 1, P}, {h, pitch, P},
                    k.dw_in + channel * pitch, pitch, {true, nullptr}
                );
        }
        if (m.sums)
            multiply<T>(
                D, P, rows, {dy, 1, pitch}, {k.g, P, P}, k.dw_out + c, pitch, {true, nullptr}
            );
    }
    if (m.sums) add_rows<T>(dy, pitch, rows, pitch, k.db_out);
    normalise_backward<T>(
        m.norm, m.x + (b * L + t0) * D, D, k.dh, pitch, rows, D,
        m.dx ? m.dx + (b * L + t0) * D : nullptr, D, m.sums ? k.dweight : nullptr,
        m.sums ? k.dbias : nullptr
    );
}

#define MB_FOR_TAPS(call)         \
    switch (m.taps) {             \
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
void mixer_open(
    const Mixer<T>& m, T* weights, int64_t b, int64_t t0, int64_t t1, bool backward, T* memory
) {
#define MB_CALL(K) open_with_taps<T, K>(m, weights, b, t0, t1, backward, memory)
    MB_FOR_TAPS(MB_CALL)
#undef MB_CALL
}

template <class T>
void mixer_backward(
    const Mixer<T>& m, T* weights, int64_t b, int64_t t0, int64_t t1, T* memory
) {
#define MB_CALL(K) backward_with_taps<T, K>(m, weights, b, t0, t1, memory)
    MB_FOR_TAPS(MB_CALL)
#undef MB_CALL
}

#undef MB_FOR_TAPS

template <class T>
int64_t mixer_sums_size(const Mixer<T>& m) {
    Arena<T> arena(nullptr);
    return MixerWork<T>(m, arena, true).sums;
}

// Add the sums of all workers, whose memories lie `each` apart, in their order.
template <class T>
void mixer_sums(const Mixer<T>& m, int64_t workers, T* memory, int64_t each) {
    for (int64_t one = 0; one < workers; ++one) {
        Arena<T> arena(memory + one * each);
        const MixerWork<T> k(m, arena, true);
        const int64_t D = m.width, K = m.taps, pitch = padded<T>(D);
        const bool add = one > 0;
        add_matrix<T>(k.dw_in, pitch, 3 * D, D, m.dw_in, add);
        add_matrix<T>(k.dw_out, pitch, D, D, m.dw_out, add);
        add_matrix<T>(k.db_in, pitch, 3, D, m.db_in, add);
        add_matrix<T>(k.db, pitch, 3, D, m.db, add);
        add_matrix<T>(k.dw, pitch, 3 * K, D, m.dw, add);  // (3, K, D)
        add_matrix<T>(k.db_out, pitch, 1, D, m.db_out, add);
        add_matrix<T>(k.dweight, pitch, 1, D, m.dweight, add);
        add_matrix<T>(k.dbias, pitch, 1, D, m.dbias, add);
    }
}

}  // namespace MB_SET
}  // namespace megabase
