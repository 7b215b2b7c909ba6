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

// The weights, the way each product reads them. P is how products are computed.
template <class P>
struct MixerWeights {
    using T = typename P::Number;
    typename P::Element *in[3], *out, *out_back, *in_back;  // (D, D); forward; backward: (3D, D)
    T *b_in, *taps, *bias, *b_out;                          // (3, D), (3, K, D), (3, D), (D)

    MixerWeights(const Mixer<T>& p, Arena<T>& arena, bool backward) {
        const int64_t D = p.width, pitch = padded<T>(D);
        for (auto*& part : in) part = take_packed<P>(arena, D, D);
        b_in = arena.take(3 * pitch), bias = arena.take(3 * pitch);
        taps = arena.take(3 * p.taps * pitch), b_out = arena.take(pitch);
        out = backward ? nullptr : take_packed<P>(arena, D, D);
        out_back = backward ? take_packed<P>(arena, D, D) : nullptr;
        in_back = backward ? take_packed<P>(arena, 3 * D, D) : nullptr;
    }
    void fill(const Mixer<T>& p, bool backward) const {
        using Exact = Full<T>;
        const int64_t D = p.width, K = p.taps, pitch = padded<T>(D);
        for (int part = 0; part < 3; ++part) {
            pack<P>(p.w_in + part * D * D, 1, D, D, D, in[part]);
            pack<Exact>(p.b_in + part * D, 0, 1, 1, D, b_in + part * pitch);
            pack<Exact>(p.b + part * D, 0, 1, 1, D, bias + part * pitch);
            for (int64_t k = 0; k < K; ++k)
                pack<Exact>(p.w + part * D * K + k, 0, K, 1, D, taps + (part * K + k) * pitch);
        }
        pack<Exact>(p.b_out, 0, 1, 1, D, b_out);
        if (!backward) return pack<P>(p.w_out, 1, D, D, D, out);
        pack<P>(p.w_out, D, 1, D, D, out_back);
        pack<P>(p.w_in, D, 1, 3 * D, D, in_back);
    }
};

// One block: what it takes of its neighbours, and its arrays.
template <class P>
struct MixerWork {
    using T = typename P::Number;
    typename P::Element *h_rows, *h_pairs, *dy_rows, *dy_pairs, *g_rows, *dp_rows, *dp_pairs;
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
        const int64_t numbers = (rows + 1) * pitch;
        h_rows = P::take(arena, numbers), h_pairs = P::take(arena, numbers);
        dy_rows = P::take(arena, numbers), dy_pairs = P::take(arena, numbers);
        dp_rows = P::take(arena, numbers), dp_pairs = P::take(arena, numbers);
        g_rows = P::take(arena, numbers);
    }
};

template <class P, class T = typename P::Number>
int64_t mixer_weights_size(const Mixer<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    MixerWeights<P> weights(p, arena, backward);
    return arena.used();
}

template <class P, class T = typename P::Number>
void mixer_pack(const Mixer<T>& p, bool backward, T* memory) {
    Arena<T> arena(memory);
    MixerWeights<P>(p, arena, backward).fill(p, backward);
}

template <class P, class T = typename P::Number>
int64_t mixer_workspace(const Mixer<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    MixerWork<P> work(p, arena, backward);
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

// Where position t of a part of the kept projected channels from c on lies; those of one part follow.
template <class T>
MB_INLINE T* kept_at(const Mixer<T>& m, int64_t b, int64_t c, int part, int64_t t) {
    const int64_t panel = b * (padded<T>(m.width) / PANEL<T>) + c / PANEL<T>;
    return m.kept + ((panel * 3 + part) * m.length + t) * PANEL<T>;
}

// Projected channels c to c + PANEL of gates and value for the positions of `s`; zero outside of
// the sequence. `h` holds the normalised positions inside. With `kept` they are read from there.
template <class P, class T = typename P::Number>
void project(
    const Mixer<T>& m, const MixerWeights<P>& w, const MixerWork<P>& k, Stretch s, int64_t b,
    int64_t c, bool kept
) {
    const int64_t D = m.width, pitch = padded<T>(D);
    for (int part = 0; part < 3; ++part) {
        T* to = k.p[part];
        clear(to, s.shift() * PANEL<T>);
        T* const inside = to + s.shift() * PANEL<T>;
        if (kept)
            memcpy(inside, kept_at(m, b, c, part, s.first), size_t(s.rows() * PANEL<T>) * sizeof(T));
        else
            multiply<P>(
                s.rows(), PANEL<T>, D, P::rows(k.h, pitch, k.h_rows),
                packed<P>(w.in[part] + P::depth(D) * c, D), inside, PANEL<T>,
                {false, w.b_in + part * pitch + c}
            );
        clear(to + (s.last - s.start) * PANEL<T>, (s.stop - s.last) * PANEL<T>);
    }
}

// One block of lanes of a part: its short convolution, which at row t reads rows t to t + K - 1 of
// the projected channels.
template <class P, int K>
struct Short {
    using T = typename P::Number;
    Vec<T> weight[K], bias;
    const T* rows;

    MB_INLINE Short(
        const Mixer<T>& m, const MixerWeights<P>& w, const MixerWork<P>& k, int part, int64_t c,
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
template <class P, int K, class T = typename P::Number>
void open_with_taps(
    const Mixer<T>& m, T* packed_weights, int64_t b, int64_t t0, int64_t t1, bool backward,
    T* memory
) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MixerWeights<P> w(m, of_weights, backward);
    const MixerWork<P> k(m, arena, backward);
    const int64_t D = m.width, L = m.length, pitch = padded<T>(D), rows = t1 - t0;
    const int64_t before = m.taps - 1 - m.after;
    const Stretch s(t0 - before, t1 + m.after, L);
    const bool kept = backward && m.kept;
    if (!kept) {
        normalise<T>(m.norm, m.x + (b * L + s.first) * D, D, s.rows(), D, k.h, pitch);
        P::to_rows(k.h, pitch, s.rows(), k.h_rows);
    }
    if (backward) {
        copy_rows<T>(m.dy + (b * L + t0) * D, D, rows, D, k.dy, pitch);
        P::to_rows(k.dy, pitch, rows, k.dy_rows);
    }
    for (int64_t c = m.first; c < m.last; c += PANEL<T>) {
        const int64_t some = m.last - c < PANEL<T> ? m.last - c : PANEL<T>;
        project<P>(m, w, k, s, b, c, kept);
        if (m.kept && !backward)
            for (int part = 0; part < 3; ++part)
                memcpy(
                    kept_at(m, b, c, part, t0), k.p[part] + before * PANEL<T>,
                    size_t(rows * PANEL<T>) * sizeof(T)
                );
        if (backward)
            multiply<P>(
                rows, PANEL<T>, D, P::rows(k.dy, pitch, k.dy_rows),
                packed<P>(w.out_back + P::depth(D) * c, D), k.dg, PANEL<T>, {false, nullptr}
            );
        for (int64_t i = 0; i < some; i += W) {
            const int count = some - i < W ? int(some - i) : W;
            const Short<P, K> first_of(m, w, k, 0, c, i), gate_of(m, w, k, 1, c, i),
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
        const int64_t at = b * (m.last - m.first) + c - m.first;
        turn<T>(k.tile, TURNED<T>, rows, some, m.u + at * L + t0, L);
        if (backward) turn<T>(k.other, TURNED<T>, rows, some, m.g + at * L + t0, L);
    }
}

// The gate behind the transforms, for one group of channels: `u` holds their result, `out` the gate,
// which its product with them takes the place of.
template <class P, class T = typename P::Number>
void mixer_gate(const Mixer<T>& m, T*, int64_t b, int64_t t0, int64_t t1, T* memory) {
    constexpr int W = lanes<T>;
    Arena<T> arena(memory);
    const MixerWork<P> k(m, arena, false);
    const int64_t D = m.width, L = m.length, rows = t1 - t0;
    T* out = m.out + (b * L + t0) * D;
    for (int64_t c = m.first; c < m.last; c += PANEL<T>) {
        const int64_t some = m.last - c < PANEL<T> ? m.last - c : PANEL<T>;
        const int64_t at = b * (m.last - m.first) + c - m.first;
        turn_back<T>(m.u + at * L + t0, L, rows, some, k.tile, TURNED<T>);
        for (int64_t t = 0; t < rows; ++t)
            for (int64_t i = 0; i < some; i += W) {
                const int count = some - i < W ? int(some - i) : W;
                T* const gate = out + t * D + c + i;
                const Vec<T> y = load_part<T>(k.tile + t * TURNED<T> + i, count);
                store_part<T>(gate, y * load_part<T>(gate, count), count);
            }
    }
}

// The output projection of what `mixer_gate` left in `out`.
template <class P, class T = typename P::Number>
void mixer_close(
    const Mixer<T>& m, T* packed_weights, int64_t b, int64_t t0, int64_t t1, T* memory
) {
    Arena<T> of_weights(packed_weights), arena(memory);
    const MixerWeights<P> w(m, of_weights, false);
    const MixerWork<P> k(m, arena, false);
    const int64_t D = m.width, L = m.length, pitch = padded<T>(D), rows = t1 - t0;
    T* out = m.out + (b * L + t0) * D;
    copy_rows<T>(out, D, rows, D, k.g, pitch);
    P::to_rows(k.g, pitch, rows, k.g_rows);
    multiply<P>(
        rows, D, D, P::rows(k.g, pitch, k.g_rows), packed<P>(w.out, D), out, D, {false, w.b_out}
    );
}

// The gradients of everything in front of the transforms and behind them: `u` holds their result,
// `g` the gradient of what they read. Sums over positions are added at the start of `memory`. Of several
// groups of channels all but the last leave the gradient of the normalised input in `dx`, to which
// the next one adds.
template <class P, int K, class T = typename P::Number>
void backward_with_taps(
    const Mixer<T>& m, T* packed_weights, int64_t b, int64_t t0, int64_t t1, T* memory
) {
    constexpr int W = lanes<T>;
    constexpr int64_t WIDE = PANEL<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MixerWeights<P> w(m, of_weights, true);
    const MixerWork<P> k(m, arena, true);
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
    P::to_rows(k.h, pitch, wide.rows(), k.h_rows);
    P::to_rows(k.dy, pitch, s.rows(), k.dy_rows);
    if (m.sums) {
        P::to_pairs(h, pitch, rows, k.h_pairs);
        P::to_pairs(dy, pitch, rows, k.dy_pairs);
    }
    T* const dx = m.dx + (b * L + t0) * D;
    if (m.first > 0) copy_rows<T>(dx, D, rows, D, k.dh, pitch);
    for (int64_t c = m.first; c < m.last; c += WIDE) {
        const int64_t some = m.last - c < WIDE ? m.last - c : WIDE;
        const int64_t at = b * (m.last - m.first) + c - m.first;
        project<P>(m, w, k, wide, b, c, m.kept != nullptr);
        multiply<P>(
            s.rows(), WIDE, D, P::rows(k.dy, pitch, k.dy_rows),
            packed<P>(w.out_back + P::depth(D) * c, D), k.dg, WIDE, {false, nullptr}
        );
        turn_back<T>(m.u + at * L + s.first, L, s.rows(), some, k.tile, TURNED<T>);
        turn_back<T>(m.g + at * L + s.first, L, s.rows(), some, k.other, TURNED<T>);
        for (int part = 0; part < 3; ++part) {
            clear(k.ds[part], s.shift() * WIDE);
            clear(k.ds[part] + (s.last - s.start) * WIDE, (s.stop - s.last) * WIDE);
        }
        for (int64_t i = 0; i < WIDE; i += W) {
            const int64_t left = some - i;
            const int count = left >= W ? W : (left > 0 ? int(left) : 0);
            const Short<P, K> first_of(m, w, k, 0, c, i), gate_of(m, w, k, 1, c, i),
                value_of(m, w, k, 2, c, i);
            for (int64_t t = 0; t < s.rows(); ++t) {
                const Vec<T> y = load_part<T>(k.tile + t * TURNED<T> + i, count);
                const Vec<T> du = load_part<T>(k.other + t * TURNED<T> + i, count);
                const int64_t row = (s.shift() + t) * WIDE + i;
                store<T>(k.ds[0] + row, y * load<T>(k.dg + t * WIDE + i));
                store<T>(k.ds[1] + row, du * value_of.at(t));
                store<T>(k.ds[2] + row, du * gate_of.at(t));
                const int64_t inner = s.first + t - t0;
                if (inner >= 0 && inner < rows)
                    store<T>(k.g + inner * WIDE + i, y * first_of.at(t));
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
                        value += weight[j] * load<T>(ds + (t + K - 1 - j) * WIDE);
                    store<T>(dp + t * WIDE, value);
                    total += value;
                    const Vec<T> slope = load<T>(ds + (t + after) * WIDE);
                    bias += slope;
#pragma GCC unroll 8
                    for (int j = 0; j < K; ++j)
                        of_weight[j] += slope * load<T>(p + (ahead + t + j) * WIDE);
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
            Right<typename P::Element> back = packed<P>(w.in_back, 3 * D);
            back.data += P::depth(channel) * WIDE;
            P::to_rows(k.dp[part], WIDE, rows, k.dp_rows);
            multiply<P>(
                rows, pitch, some, P::rows(k.dp[part], WIDE, k.dp_rows), back, k.dh, pitch,
                {channel > 0, nullptr}
            );
            if (!m.sums) continue;
            P::to_pairs(k.dp[part], WIDE, rows, k.dp_pairs);
            multiply<P>(
                some, pitch, rows, P::turned(k.dp[part], WIDE, k.dp_pairs),
                P::right(h, pitch, k.h_pairs), k.dw_in + channel * pitch, pitch, {true, nullptr}
            );
        }
        if (!m.sums) continue;
        P::to_pairs(k.g, WIDE, rows, k.g_rows);
        multiply<P>(
            D, WIDE, rows, P::turned(dy, pitch, k.dy_pairs), P::right(k.g, WIDE, k.g_rows),
            k.dw_out + c, pitch, {true, nullptr}
        );
    }
    if (m.last < D) {  // the next group of channels adds to it
        for (int64_t r = 0; r < rows; ++r)
            memcpy(dx + r * D, k.dh + r * pitch, size_t(D) * sizeof(T));
        return;
    }
    if (m.sums) add_rows<T>(dy, pitch, rows, pitch, k.db_out);
    normalise_backward<T>(
        m.norm, m.x + (b * L + t0) * D, D, k.dh, pitch, rows, D, dx, D,
        m.sums ? k.dweight : nullptr, m.sums ? k.dbias : nullptr
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

template <class P, class T = typename P::Number>
void mixer_open(
    const Mixer<T>& m, T* weights, int64_t b, int64_t t0, int64_t t1, bool backward, T* memory
) {
#define MB_CALL(K) open_with_taps<P, K>(m, weights, b, t0, t1, backward, memory)
    MB_FOR_TAPS(MB_CALL)
#undef MB_CALL
}

template <class P, class T = typename P::Number>
void mixer_backward(
    const Mixer<T>& m, T* weights, int64_t b, int64_t t0, int64_t t1, T* memory
) {
#define MB_CALL(K) backward_with_taps<P, K>(m, weights, b, t0, t1, memory)
    MB_FOR_TAPS(MB_CALL)
#undef MB_CALL
}

#undef MB_FOR_TAPS

template <class P, class T = typename P::Number>
int64_t mixer_sums_size(const Mixer<T>& m) {
    Arena<T> arena(nullptr);
    return MixerWork<P>(m, arena, true).sums;
}

// Add the sums of all workers, whose memories lie `each` apart, in their order, to the gradients.
template <class P, class T = typename P::Number>
void mixer_sums(const Mixer<T>& m, int64_t workers, T* memory, int64_t each) {
    for (int64_t one = 0; one < workers; ++one) {
        Arena<T> arena(memory + one * each);
        const MixerWork<P> k(m, arena, true);
        const int64_t D = m.width, K = m.taps, pitch = padded<T>(D);
        const bool add = true;
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
