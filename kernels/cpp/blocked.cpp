// The blocked operators in Python: arrays, and a share of the blocks for each worker.
//
// A worker's share is fixed by the number of workers, and sums are added in the order of workers:
// the same inputs and the same number of threads give the same bits.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <vector>

#include "host.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace megabase {
namespace {

// The arrays of a call, taken one after the other.
class Taken {
  public:
    explicit Taken(const Arrays& arrays) : arrays_(arrays) {}
    template <class T>
    T* next(const char* name, Shape shape, Want want = Want::ALWAYS) {
        expect(at_ < arrays_.size(), "too few arrays");
        return pointer<T>(arrays_[at_++], name, shape, want);
    }
    template <class T>
    Norm<T> norm(int64_t width, double eps) {
        const T* weight = next<const T>("norm weight", {width}, Want::MAYBE);
        const T* bias = next<const T>("norm bias", {width}, Want::MAYBE);
        return {weight, bias, T(eps)};
    }
    bool more() const { return at_ < arrays_.size(); }
    void finish() const { expect(at_ == arrays_.size(), "too many arrays"); }

  private:
    const Arrays& arrays_;
    size_t at_ = 0;
};

void expect_sizes(const Numbers& sizes, size_t count) {
    expect(sizes.size() == count, "wrong number of sizes");
    for (int64_t size : sizes) expect(size >= 0, "a size is negative");
}

// Weights of all workers and a workspace for each.
template <class T>
struct Memory {
    int64_t workers, each;
    Workspace<T> weights, work;

    Memory(int64_t blocks, int threads, int64_t weights_size, int64_t each_size)
        : workers(blocks < threads ? (blocks > 0 ? blocks : 1) : threads),
          each(rounded(each_size)),
          weights(weights_size),
          work(each * workers) {}
    T* of(int64_t worker) const { return work.data() + worker * each; }

    template <class Function>
    void run(int64_t blocks, const Function& function) const {
        parallel_for(workers, int(workers), [&](int64_t worker) {
            function(blocks * worker / workers, blocks * (worker + 1) / workers, of(worker));
        });
    }
};

int64_t blocks_of(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

template <class T>
const Blocked<T>& products(bool half) {
    const Functions<T>& f = table().of<T>();
    if (half && !f.half.mlp_pack)
        throw std::invalid_argument("no products in bfloat16 with this instruction set");
    return half ? f.half : f.full;
}

// Products of pairs need even widths.
void check_half(bool half, int64_t width, int64_t inner) {
    expect(!half || (width % 2 == 0 && inner % 2 == 0), "products in bfloat16 need even widths");
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// sizes: rows, width, inner, sums. arrays: norm weight, norm bias, x, w1, b1, w2, b2, then y; or
// dy, dx, dw1, db1, dw2, db2, dweight, dbias; and what is kept between the passes, if anything.
template <class T>
void mlp_as(
    const Numbers& sizes, double eps, const Arrays& a, bool half, bool backward, int threads
) {
    expect_sizes(sizes, 4);
    Taken arrays(a);
    Mlp<T> p{};
    p.rows = sizes[0], p.width = sizes[1], p.inner = sizes[2], p.sums = sizes[3] != 0;
    const int64_t N = p.rows, D = p.width, E = p.inner;
    p.norm = arrays.norm<T>(D, eps);
    p.x = arrays.next<const T>("x", {N, D});
    p.w1 = arrays.next<const T>("w1", {E, D}), p.b1 = arrays.next<const T>("b1", {E});
    p.w2 = arrays.next<const T>("w2", {D, E}), p.b2 = arrays.next<const T>("b2", {D});
    if (backward) {
        const Want sums = p.sums ? Want::ALWAYS : Want::MAYBE;
        p.dy = arrays.next<const T>("dy", {N, D}), p.dx = arrays.next<T>("dx", {N, D}, Want::MAYBE);
        p.dw1 = arrays.next<T>("dw1", {E, D}, sums), p.db1 = arrays.next<T>("db1", {E}, sums);
        p.dw2 = arrays.next<T>("dw2", {D, E}, sums), p.db2 = arrays.next<T>("db2", {D}, sums);
        p.dweight = arrays.next<T>("dweight", {D}, sums);
        p.dbias = arrays.next<T>("dbias", {D}, sums);
    } else {
        p.y = arrays.next<T>("y", {N, D});
    }
    if (arrays.more()) p.kept = arrays.next<T>("kept", {N, E}, Want::MAYBE);
    arrays.finish();
    check_half(half, D, E);
    const int64_t rows = table().of<T>().block_rows;
    const Blocked<T>& f = products<T>(half);
    const int64_t blocks = blocks_of(p.rows, rows);
    const Memory<T> memory(
        blocks, threads, f.mlp_weights_size(p, backward),
        backward ? f.mlp_backward_workspace(p) : f.mlp_forward_workspace(p)
    );
    f.mlp_pack(p, backward, memory.weights.data());
    memory.run(blocks, [&](int64_t first, int64_t last, T* work) {
        const int64_t begin = first * rows, end = least(last * rows, p.rows);
        (backward ? f.mlp_backward : f.mlp_forward)(p, memory.weights.data(), begin, end, work);
    });
    if (backward && p.sums) f.mlp_sums(p, memory.workers, memory.work.data(), memory.each);
}

enum Pass { OPEN, GATE, CLOSE, OPEN_BACKWARD, BACKWARD };

// sizes: batch, length, width, taps, after, first, last, sums. arrays: norm weight, norm bias, x, w_in, b_in,
// w, b, w_out, b_out, u, then out; or g, dy for the first half of the backward pass, and
// after them dx, dw_in, db_in, dw, db, dw_out, db_out, dweight, dbias for the second; and what is kept
// between the passes, if anything.
template <class T>
void mixer_as(
    const Numbers& sizes, double eps, const Arrays& a, bool half, int pass, int threads
) {
    expect_sizes(sizes, 8);
    expect(pass >= OPEN && pass <= BACKWARD, "there is no such pass");
    Taken arrays(a);
    Mixer<T> m{};
    m.batch = sizes[0], m.length = sizes[1], m.width = sizes[2], m.taps = sizes[3];
    m.after = sizes[4], m.first = sizes[5], m.last = sizes[6], m.sums = sizes[7] != 0;
    const int64_t B = m.batch, L = m.length, D = m.width, K = m.taps, c = m.last - m.first;
    expect(K >= 1 && K <= 8, "expected 1 to 8 taps");
    expect(m.after < K, "expected fewer taps behind the position than taps");
    expect(m.first <= m.last && m.last <= D, "expected a group of the channels");
    expect(m.first % table().of<T>().panel == 0, "a group begins at a multiple of a panel");
    m.norm = arrays.norm<T>(D, eps);
    m.x = arrays.next<const T>("x", {B, L, D});
    m.w_in = arrays.next<const T>("w_in", {3 * D, D}), m.b_in = arrays.next<const T>("b_in", {3 * D});
    m.w = arrays.next<const T>("w", {3 * D, K}), m.b = arrays.next<const T>("b", {3 * D});
    m.w_out = arrays.next<const T>("w_out", {D, D}), m.b_out = arrays.next<const T>("b_out", {D});
    m.u = arrays.next<T>("u", {B, c, L});
    const bool backward = pass == OPEN_BACKWARD || pass == BACKWARD;
    if (backward) {
        m.g = arrays.next<T>("g", {B, c, L});
        m.dy = arrays.next<const T>("dy", {B, L, D});
    } else {
        m.out = arrays.next<T>("out", {B, L, D});
    }
    if (pass == BACKWARD) {
        const Want sums = m.sums ? Want::ALWAYS : Want::MAYBE;
        m.dx = arrays.next<T>("dx", {B, L, D});
        m.dw_in = arrays.next<T>("dw_in", {3 * D, D}, sums);
        m.db_in = arrays.next<T>("db_in", {3 * D}, sums);
        m.dw = arrays.next<T>("dw", {3, K, D}, sums), m.db = arrays.next<T>("db", {3 * D}, sums);
        m.dw_out = arrays.next<T>("dw_out", {D, D}, sums);
        m.db_out = arrays.next<T>("db_out", {D}, sums);
        m.dweight = arrays.next<T>("dweight", {D}, sums);
        m.dbias = arrays.next<T>("dbias", {D}, sums);
    }
    const int64_t panel = table().of<T>().panel, panels = (D + panel - 1) / panel;
    if (arrays.more()) m.kept = arrays.next<T>("kept", {B, panels, 3, L, panel}, Want::MAYBE);
    arrays.finish();
    check_half(half, D, D);
    const int64_t rows = table().of<T>().block_rows;
    const Blocked<T>& f = products<T>(half);
    const int64_t parts = blocks_of(m.length, rows), blocks = m.batch * parts;
    const Memory<T> memory(
        blocks, threads, f.mixer_weights_size(m, backward), f.mixer_workspace(m, backward)
    );
    f.mixer_pack(m, backward, memory.weights.data());
    T* const weights = memory.weights.data();
    const int64_t sums = pass == BACKWARD ? f.mixer_sums_size(m) : 0;
    memory.run(blocks, [&](int64_t first, int64_t last, T* work) {
        for (int64_t i = 0; i < sums; ++i) work[i] = T(0);
        for (int64_t block = first; block < last; ++block) {
            const int64_t b = block / parts, t0 = block % parts * rows;
            const int64_t t1 = least(t0 + rows, m.length);
            if (pass == GATE)
                f.mixer_gate(m, weights, b, t0, t1, work);
            else if (pass == CLOSE)
                f.mixer_close(m, weights, b, t0, t1, work);
            else if (pass == BACKWARD)
                f.mixer_backward(m, weights, b, t0, t1, work);
            else
                f.mixer_open(m, weights, b, t0, t1, backward, work);
        }
    });
    if (pass == BACKWARD && m.sums)
        f.mixer_sums(m, memory.workers, memory.work.data(), memory.each);
}

// sizes: lags, features, width, channels, layers. arrays: z, t, freq, rate, last, k or dk, then
// the weights and the biases of the layers; backward also dz, dfreq, dlast and the gradients of
// weights and biases.
template <class T>
void filter_as(const Numbers& sizes, double shift, const Arrays& a, bool backward, int threads) {
    expect_sizes(sizes, 5);
    Taken arrays(a);
    Filter<T> p{};
    p.lags = sizes[0], p.features = sizes[1], p.width = sizes[2], p.channels = sizes[3];
    p.layers = sizes[4], p.shift = T(shift);
    expect(p.layers >= 1 && p.layers <= MAX_LAYERS, "expected 1 to 8 layers");
    const int64_t M = p.lags, E = p.features, W = p.width, C = p.channels;
    p.z = arrays.next<const T>("z", {M, E}), p.t = arrays.next<const T>("t", {M});
    p.freq = arrays.next<const T>("freq", {W});
    p.rate = arrays.next<const T>("rate", {C}, Want::MAYBE);
    p.last = arrays.next<const T>("last", {C, W});
    (backward ? const_cast<T*&>(p.dk) : p.k) = arrays.next<T>(backward ? "dk" : "k", {C, M});
    for (int64_t i = 0; i < p.layers; ++i)
        p.weights[i] = arrays.next<const T>("a layer's weight", {W, i ? W : E});
    for (int64_t i = 0; i < p.layers; ++i)
        p.biases[i] = arrays.next<const T>("a layer's bias", {W});
    if (backward) {
        p.dz = arrays.next<T>("dz", {M, E}, Want::MAYBE);
        p.dfreq = arrays.next<T>("dfreq", {W}), p.dlast = arrays.next<T>("dlast", {C, W});
        for (int64_t i = 0; i < p.layers; ++i)
            p.dweights[i] = arrays.next<T>("the gradient of a layer's weight", {W, i ? W : E});
        for (int64_t i = 0; i < p.layers; ++i)
            p.dbiases[i] = arrays.next<T>("the gradient of a layer's bias", {W});
    }
    arrays.finish();
    const Functions<T>& f = table().of<T>();
    const int64_t blocks = blocks_of(p.lags, f.block_rows);
    const Memory<T> memory(
        blocks, threads, f.filter_weights_size(p, backward), f.filter_workspace(p, backward)
    );
    f.filter_pack(p, backward, memory.weights.data());
    memory.run(blocks, [&](int64_t first, int64_t last, T* work) {
        const int64_t begin = first * f.block_rows, end = least(last * f.block_rows, p.lags);
        (backward ? f.filter_backward : f.filter_forward)(
            p, memory.weights.data(), begin, end, work
        );
    });
    if (backward) f.filter_sums(p, memory.workers, memory.work.data(), memory.each);
}

// Spectra as (rows, channels, frequencies) pairs of numbers without gaps, of the filter as
// (channels, frequencies).
template <class T>
void spectra_as(
    const Numbers& sizes, const Given& u_, const Given& g_, const Given& k_, const Given& dk_,
    int threads
) {
    expect_sizes(sizes, 3);
    const int64_t rows = sizes[0], channels = sizes[1], frequencies = sizes[2];
    const auto complex = [](const Given& given, const char* name, Shape shape, Want want) {
        return pointer<T>(given, name, shape, want, Kind::COMPLEX);
    };
    T* const u = complex(u_, "u", {rows, channels, frequencies}, Want::ALWAYS);
    T* const g = complex(g_, "g", {rows, channels, frequencies}, Want::MAYBE);
    const T* const k = complex(k_, "k", {channels, frequencies}, Want::ALWAYS);
    T* const dk = complex(dk_, "dk", {channels, frequencies}, Want::MAYBE);
    const int64_t row = 2 * frequencies;
    const Functions<T>& f = table().of<T>();
    parallel_for(channels, threads, [&](int64_t c) {
        for (int64_t b = 0; b < rows; ++b) {
            T* const one = u + (b * channels + c) * row;
            const T* const filter = k + c * row;
            if (!g) {
                f.spectrum_times(one, filter, frequencies);
                continue;
            }
            T* const sums = dk ? dk + c * row : nullptr;
            f.spectrum_backward(one, g + (b * channels + c) * row, filter, sums, frequencies);
        }
    });
}

// Rows of `length` numbers into rows of `half` pairs, or back into them with the rows of 2 half numbers
// that the cyclic product gave.
template <class T>
void fold_as(
    const Numbers& sizes, const Given& u_, const Given& weights, const Given& z_,
    const Given& cyclic_, bool back, int threads
) {
    expect_sizes(sizes, 3);
    const int64_t rows = sizes[0], length = sizes[1], half = sizes[2], piece = 1 << 14;
    expect(length <= 2 * half, "expected rows that are no longer than the transform");
    T* const u = pointer<T>(u_, "u", {rows, length});
    const T* const w = pointer<const T>(weights, "weights", {2, half});
    T* const z = pointer<T>(z_, "z", {rows, half}, Want::ALWAYS, Kind::COMPLEX);
    const T* const cyclic =
        back ? pointer<const T>(cyclic_, "cyclic", {rows, 2 * half}) : nullptr;
    const int64_t pieces = (half + piece - 1) / piece;
    const Functions<T>& f = table().of<T>();
    parallel_for(rows * pieces, threads, [&](int64_t task) {
        const int64_t row = task / pieces, begin = task % pieces * piece;
        const int64_t end = least(begin + piece, half);
        T* const one = u + row * length;
        T* const pairs = z + row * 2 * half;
        if (back)
            f.unfold(
                pairs, cyclic + row * 2 * half, w, half, begin, end, one, length
            );
        else
            f.fold(one, length, w, half, begin, end, pairs);
    });
}

}  // namespace

void add_blocked(nb::module_& m) {
    m.def("panel", [](bool twice) { return twice ? table().twice.panel : table().single.panel; }, "double"_a);
    m.def("half_products", [] { return table().single.half.mlp_pack != nullptr; });
    m.def(
        "mlp",
        [](bool twice, const Numbers& sizes, double eps, const Arrays& arrays, bool half, bool backward,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? mlp_as<double> : mlp_as<float>)(
                sizes, eps, arrays, half, backward, at_least_one(threads)
            );
        },
        "double"_a, "sizes"_a, "eps"_a, "arrays"_a, "half"_a, "backward"_a, "threads"_a
    );
    m.def(
        "mixer",
        [](bool twice, const Numbers& sizes, double eps, const Arrays& arrays, bool half, int pass,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? mixer_as<double> : mixer_as<float>)(
                sizes, eps, arrays, half, pass, at_least_one(threads)
            );
        },
        "double"_a, "sizes"_a, "eps"_a, "arrays"_a, "half"_a, "pass"_a, "threads"_a
    );
    m.def(
        "filter",
        [](bool twice, const Numbers& sizes, double shift, const Arrays& arrays, bool backward, int threads) {
            nb::gil_scoped_release release;
            (twice ? filter_as<double> : filter_as<float>)(
                sizes, shift, arrays, backward, at_least_one(threads)
            );
        },
        "double"_a, "sizes"_a, "shift"_a, "arrays"_a, "backward"_a, "threads"_a
    );
    m.def(
        "spectra",
        [](bool twice, const Numbers& sizes, const Given& u, const Given& g, const Given& k,
           const Given& dk, int threads) {
            nb::gil_scoped_release release;
            (twice ? spectra_as<double> : spectra_as<float>)(sizes, u, g, k, dk, threads);
        },
        "double"_a, "sizes"_a, "u"_a, "g"_a.none(), "k"_a, "dk"_a.none(), "threads"_a
    );
    m.def(
        "fold",
        [](bool twice, const Numbers& sizes, const Given& u, const Given& weights, const Given& z,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? fold_as<double> : fold_as<float>)(sizes, u, weights, z, std::nullopt, false, threads);
        },
        "double"_a, "sizes"_a, "u"_a, "weights"_a, "z"_a, "threads"_a
    );
    m.def(
        "unfold",
        [](bool twice, const Numbers& sizes, const Given& z, const Given& cyclic, const Given& weights,
           const Given& u,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? fold_as<double> : fold_as<float>)(sizes, u, weights, z, cyclic, true, threads);
        },
        "double"_a, "sizes"_a, "z"_a, "cyclic"_a, "weights"_a, "u"_a, "threads"_a
    );
    m.def(
        "sine",
        [](bool twice, const Given& x, const Given& y, bool cosine) {
            const int64_t count = x ? int64_t(x->size()) : 0;
            if (twice)
                table().twice.sine(
                    pointer<const double>(x, "x", {count}), pointer<double>(y, "y", {count}), count,
                    cosine
                );
            else
                table().single.sine(
                    pointer<const float>(x, "x", {count}), pointer<float>(y, "y", {count}), count,
                    cosine
                );
        },
        "double"_a, "x"_a, "y"_a, "cosine"_a
    );
}

}  // namespace megabase
