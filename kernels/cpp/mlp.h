// LayerNorm and MLP with GELU in its tanh form, block of rows by block of rows. Nothing as wide as
// the inner layer leaves the cache; the backward pass computes it again.
#pragma once

#include "rows.h"

namespace megabase {
namespace MB_SET {

template <class T>
constexpr int64_t MLP_INNER = 2 * PANEL<T>;  // inner columns worked on at a time

// a s(a (c + d a^2)) with the logistic function s is GELU in its tanh form.
template <class T>
constexpr T GELU_C = T(1.5957691216057308);
template <class T>
constexpr T GELU_D = T(0.071354816272600291);

template <class T>
MB_INLINE Vec<T> gelu(Vec<T> a) {
    return a * sigmoid<T>(a * (GELU_C<T> + GELU_D<T> * a * a));
}

template <class T>
MB_INLINE Vec<T> gelu_with_slope(Vec<T> a, Vec<T>& slope) {
    const Vec<T> square = a * a;
    const Vec<T> s = sigmoid<T>(a * (GELU_C<T> + GELU_D<T> * square));
    slope = s + a * s * (T(1) - s) * (GELU_C<T> + T(3) * GELU_D<T> * square);
    return a * s;
}

// The weights in panels, the way each product reads them. P is how products are computed.
template <class P>
struct MlpWeights {
    using T = typename P::Number;
    typename P::Element *first, *second;            // (D, E), (E, D)
    typename P::Element *first_back, *second_back;  // (E, D), (D, E); backward only
    T *b1, *b2;

    MlpWeights(const Mlp<T>& p, Arena<T>& arena, bool backward) {
        first = take_packed<P>(arena, p.width, p.inner);
        b1 = arena.take(padded<T>(p.inner));
        second = backward ? nullptr : take_packed<P>(arena, p.inner, p.width);
        b2 = arena.take(padded<T>(p.width));
        first_back = backward ? take_packed<P>(arena, p.inner, p.width) : nullptr;
        second_back = backward ? take_packed<P>(arena, p.width, p.inner) : nullptr;
    }
    void fill(const Mlp<T>& p, bool backward) const {
        const int64_t D = p.width, E = p.inner;
        pack<P>(p.w1, 1, D, D, E, first);
        pack<Full<T>>(p.b1, 0, 1, 1, E, b1);
        pack<Full<T>>(p.b2, 0, 1, 1, D, b2);
        if (!backward) return pack<P>(p.w2, 1, E, E, D, second);
        pack<P>(p.w1, D, 1, E, D, first_back);
        pack<P>(p.w2, E, 1, D, E, second_back);
    }
};

template <class P>
struct MlpForwardWork {
    using T = typename P::Number;
    T *h, *a, *y;
    typename P::Element *h_rows, *a_rows;
    MlpForwardWork(const Mlp<T>& p, Arena<T>& arena) {
        h_rows = P::take(arena, BLOCK_ROWS * padded<T>(p.width));
        a_rows = P::take(arena, BLOCK_ROWS * MLP_INNER<T>);
        h = arena.take(BLOCK_ROWS * padded<T>(p.width));
        a = arena.take(BLOCK_ROWS * MLP_INNER<T>);
        y = arena.take(BLOCK_ROWS * padded<T>(p.width));
    }
};

// Sums over rows of one worker, and its block.
template <class P>
struct MlpBackwardWork {
    using T = typename P::Number;
    typename P::Element *h_rows, *h_pairs, *dy_rows, *dy_pairs, *a_pairs, *da_rows, *da_pairs;
    T *dw1, *dw2, *db1, *db2, *dweight, *dbias;
    T *h, *dy, *a, *da, *dh;
    int64_t sums = 0;
    MlpBackwardWork(const Mlp<T>& p, Arena<T>& arena) {
        const int64_t D = padded<T>(p.width), E = padded<T>(p.inner);
        dw1 = arena.take(p.inner * D), dw2 = arena.take(p.width * E);
        db1 = arena.take(E), db2 = arena.take(D), dweight = arena.take(D), dbias = arena.take(D);
        sums = arena.used();
        h = arena.take(BLOCK_ROWS * D), dy = arena.take(BLOCK_ROWS * D), dh = arena.take(BLOCK_ROWS * D);
        a = arena.take(BLOCK_ROWS * MLP_INNER<T>), da = arena.take(BLOCK_ROWS * MLP_INNER<T>);
        const int64_t of_width = (BLOCK_ROWS + 1) * D, of_inner = (BLOCK_ROWS + 1) * MLP_INNER<T>;
        h_rows = P::take(arena, of_width), h_pairs = P::take(arena, of_width);
        dy_rows = P::take(arena, of_width), dy_pairs = P::take(arena, of_width);
        a_pairs = P::take(arena, of_inner);
        da_rows = P::take(arena, of_inner), da_pairs = P::take(arena, of_inner);
    }
};

template <class P, class T = typename P::Number>
int64_t mlp_weights_size(const Mlp<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    MlpWeights<P> weights(p, arena, backward);
    return arena.used();
}

template <class P, class T = typename P::Number>
void mlp_pack(const Mlp<T>& p, bool backward, T* memory) {
    Arena<T> arena(memory);
    MlpWeights<P>(p, arena, backward).fill(p, backward);
}

template <class P, class T = typename P::Number>
int64_t mlp_forward_workspace(const Mlp<T>& p) {
    Arena<T> arena(nullptr);
    MlpForwardWork<P> work(p, arena);
    return arena.used();
}

template <class P, class T = typename P::Number>
int64_t mlp_backward_workspace(const Mlp<T>& p) {
    Arena<T> arena(nullptr);
    MlpBackwardWork<P> work(p, arena);
    return arena.used();
}

template <class P, class T = typename P::Number>
void mlp_forward(const Mlp<T>& p, T* packed_weights, int64_t begin, int64_t end, T* memory) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MlpWeights<P> w(p, of_weights, false);
    const MlpForwardWork<P> k(p, arena);
    const int64_t D = p.width, E = p.inner, pitch = padded<T>(D);
    for (int64_t at = begin; at < end; at += BLOCK_ROWS) {
        const int64_t rows = end - at < BLOCK_ROWS ? end - at : BLOCK_ROWS;
        normalise<T>(p.norm, p.x + at * D, D, rows, D, k.h, pitch);
        P::to_rows(k.h, pitch, rows, k.h_rows);
        for (int64_t e = 0; e < E; e += MLP_INNER<T>) {
            const int64_t some = E - e < MLP_INNER<T> ? E - e : MLP_INNER<T>;
            const int64_t wide = padded<T>(some);
            multiply<P>(
                rows, wide, D, P::rows(k.h, pitch, k.h_rows),
                packed<P>(w.first + P::depth(D) * e, D), k.a, wide, {false, w.b1 + e}
            );
            if (p.kept) copy_block<T>(k.a, wide, rows, some, p.kept + at * E + rows * e, some);
            for (int64_t i = 0; i < rows * wide; i += W) store<T>(k.a + i, gelu<T>(load<T>(k.a + i)));
            P::to_rows(k.a, wide, rows, k.a_rows);
            Right<typename P::Element> second = packed<P>(w.second, E);
            second.data += P::depth(e) * PANEL<T>;
            multiply<P>(
                rows, pitch, some, P::rows(k.a, wide, k.a_rows), second, k.y, pitch,
                {e > 0, e ? nullptr : w.b2}
            );
        }
        for (int64_t r = 0; r < rows; ++r)
            memcpy(p.y + (at + r) * D, k.y + r * pitch, size_t(D) * sizeof(T));
    }
}

// The sums over the rows from `begin` to `end` are left at the start of `memory`.
template <class P, class T = typename P::Number>
void mlp_backward(const Mlp<T>& p, T* packed_weights, int64_t begin, int64_t end, T* memory) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MlpWeights<P> w(p, of_weights, true);
    const MlpBackwardWork<P> k(p, arena);
    const int64_t D = p.width, E = p.inner, pitch = padded<T>(D), inner = padded<T>(E);
    clear(memory, k.sums);
    for (int64_t at = begin; at < end; at += BLOCK_ROWS) {
        const int64_t rows = end - at < BLOCK_ROWS ? end - at : BLOCK_ROWS;
        normalise<T>(p.norm, p.x + at * D, D, rows, D, k.h, pitch);
        copy_rows<T>(p.dy + at * D, D, rows, D, k.dy, pitch);
        P::to_rows(k.h, pitch, rows, k.h_rows);
        P::to_rows(k.dy, pitch, rows, k.dy_rows);
        if (p.sums) {
            P::to_pairs(k.h, pitch, rows, k.h_pairs);
            P::to_pairs(k.dy, pitch, rows, k.dy_pairs);
            add_rows<T>(k.dy, pitch, rows, pitch, k.db2);
        }
        for (int64_t e = 0; e < E; e += MLP_INNER<T>) {
            const int64_t some = E - e < MLP_INNER<T> ? E - e : MLP_INNER<T>;
            const int64_t wide = padded<T>(some);
            if (p.kept)
                copy_block<T>(p.kept + at * E + rows * e, some, rows, some, k.a, wide);
            else
                multiply<P>(
                    rows, wide, D, P::rows(k.h, pitch, k.h_rows),
                    packed<P>(w.first + P::depth(D) * e, D), k.a, wide, {false, w.b1 + e}
                );
            multiply<P>(
                rows, wide, D, P::rows(k.dy, pitch, k.dy_rows),
                packed<P>(w.second_back + P::depth(D) * e, D), k.da, wide, {false, nullptr}
            );
            for (int64_t i = 0; i < wide; i += W) {
                Vec<T> total = load<T>(k.db1 + e + i);
                for (int64_t r = 0; r < rows; ++r) {
                    const int64_t here = r * wide + i;
                    Vec<T> slope;
                    store<T>(k.a + here, gelu_with_slope<T>(load<T>(k.a + here), slope));
                    slope *= load<T>(k.da + here);
                    total += slope;
                    store<T>(k.da + here, slope);
                }
                store<T>(k.db1 + e + i, total);
            }
            P::to_rows(k.da, wide, rows, k.da_rows);
            if (p.sums) {
                P::to_pairs(k.a, wide, rows, k.a_pairs);
                P::to_pairs(k.da, wide, rows, k.da_pairs);
                multiply<P>(
                    D, wide, rows, P::turned(k.dy, pitch, k.dy_pairs),
                    P::right(k.a, wide, k.a_pairs), k.dw2 + e, inner, {true, nullptr}
                );
                multiply<P>(
                    some, pitch, rows, P::turned(k.da, wide, k.da_pairs),
                    P::right(k.h, pitch, k.h_pairs), k.dw1 + e * pitch, pitch, {true, nullptr}
                );
            }
            Right<typename P::Element> back = packed<P>(w.first_back, E);
            back.data += P::depth(e) * PANEL<T>;
            multiply<P>(
                rows, pitch, some, P::rows(k.da, wide, k.da_rows), back, k.dh, pitch,
                {e > 0, nullptr}
            );
        }
        normalise_backward<T>(
            p.norm, p.x + at * D, D, k.dh, pitch, rows, D, p.dx ? p.dx + at * D : nullptr, D,
            p.sums ? k.dweight : nullptr, p.sums ? k.dbias : nullptr
        );
    }
}

// Add the sums of all workers, whose memories lie `each` apart, in their order.
template <class P, class T = typename P::Number>
void mlp_sums(const Mlp<T>& p, int64_t workers, T* memory, int64_t each) {
    for (int64_t one = 0; one < workers; ++one) {
        Arena<T> arena(memory + one * each);
        const MlpBackwardWork<P> k(p, arena);
        const int64_t D = p.width, E = p.inner, pitch = padded<T>(D), inner = padded<T>(E);
        add_matrix<T>(k.dw1, pitch, E, D, p.dw1, one > 0);
        add_matrix<T>(k.dw2, inner, D, E, p.dw2, one > 0);
        add_matrix<T>(k.db1, inner, 1, E, p.db1, one > 0);
        add_matrix<T>(k.db2, pitch, 1, D, p.db2, one > 0);
        add_matrix<T>(k.dweight, pitch, 1, D, p.dweight, one > 0);
        add_matrix<T>(k.dbias, pitch, 1, D, p.dbias, one > 0);
    }
}

}  // namespace MB_SET
}  // namespace megabase
