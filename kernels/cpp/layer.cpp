// One Hyena layer without its transforms, over rows of any sequences, with its weights packed once,
// and what the head of a language model says about letters: for callers that run the same model over
// many short pieces.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "host.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace megabase {
namespace {

template <class T>
class Layer {
  public:
    // sizes: width, taps, inner. arrays: weight and bias of the first norm, w_in, b_in, w, b,
    // w_out, b_out, weight and bias of the second norm, w1, b1, w2, b2. The norms are read where
    // they are by every call; all else is copied.
    Layer(const Numbers& sizes, double eps_mixer, double eps_mlp, const Arrays& a)
        : functions_(table().of<T>()), norms_(norms_of(a)), mixer_(mixer_of(sizes, eps_mixer, a)),
          mlp_(mlp_of(sizes, eps_mlp, a)),
          mixer_weights_(functions_.full.mixer_weights_size(mixer_, false)),
          mlp_weights_(functions_.full.mlp_weights_size(mlp_, false)) {
        functions_.full.mixer_pack(mixer_, false, mixer_weights_.data());
        functions_.full.mlp_pack(mlp_, false, mlp_weights_.data());
    }

    // From x (batch, length, width) the gated value u (batch, width, length) and the output gate
    // (batch, length, width), both from row `first` on; rows before it are only looked at.
    void open(
        int64_t batch, int64_t length, int64_t first, const Given& x, const Given& u,
        const Given& gate, int threads
    ) const {
        expect(first >= 0, "first is negative");
        Mixer<T> m = mixer_;
        m.batch = batch, m.length = length;
        m.x = pointer<const T>(x, "x", {batch, length, m.width});
        m.u = pointer<T>(u, "u", {batch, m.width, length});
        m.out = pointer<T>(gate, "gate", {batch, length, m.width});
        run(batch, length, first, threads, functions_.full.mixer_workspace(m, false),
            [&](int64_t b, int64_t t0, int64_t t1, T* work) {
                functions_.full.mixer_open(m, mixer_weights_.data(), b, t0, t1, false, work);
            });
    }

    // From the transforms' result y (batch, width, length), the output gate (which is overwritten)
    // and the running sum x the running sum after the layer, (batch, length, width).
    void close(
        int64_t batch, int64_t length, const Given& y, const Given& gate, const Given& x,
        const Given& out, int threads
    ) const {
        Mixer<T> m = mixer_;
        Mlp<T> p = mlp_;
        m.batch = batch, m.length = length, p.rows = batch * length;
        m.u = pointer<T>(y, "y", {batch, m.width, length});
        m.out = pointer<T>(gate, "gate", {batch, length, m.width});
        p.x = m.out, p.y = pointer<T>(out, "out", {batch, length, m.width});
        const T* const before = pointer<const T>(x, "x", {batch, length, m.width});
        const Blocked<T>& f = functions_.full;
        const int64_t of_mixer = rounded(f.mixer_workspace(m, false));
        run(batch, length, 0, threads, of_mixer + f.mlp_forward_workspace(p),
            [&](int64_t b, int64_t t0, int64_t t1, T* work) {
                const int64_t begin = b * length + t0, end = b * length + t1;
                f.mixer_gate(m, mixer_weights_.data(), b, t0, t1, work);
                f.mixer_close(m, mixer_weights_.data(), b, t0, t1, work);
                add(m.out, before, begin * m.width, end * m.width);
                f.mlp_forward(p, mlp_weights_.data(), begin, end, work + of_mixer);
                add(p.y, m.out, begin * m.width, end * m.width);
            });
    }

  private:
    const Functions<T>& functions_;
    const Arrays norms_;  // keeps them
    Mixer<T> mixer_;
    Mlp<T> mlp_;
    Workspace<T> mixer_weights_, mlp_weights_;

    static void add(T* total, const T* other, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) total[i] += other[i];
    }

    static Arrays norms_of(const Arrays& a) {
        expect(a.size() == 14, "expected 14 arrays");
        return {a[0], a[1], a[8], a[9]};
    }

    static Norm<T> norm_of(const Arrays& a, size_t at, int64_t width, double eps) {
        return {
            pointer<const T>(a[at], "norm weight", {width}, Want::MAYBE),
            pointer<const T>(a[at + 1], "norm bias", {width}, Want::MAYBE), T(eps)
        };
    }

    static Mixer<T> mixer_of(const Numbers& sizes, double eps, const Arrays& a) {
        expect(sizes.size() == 3, "expected 3 sizes");
        const int64_t D = sizes[0], K = sizes[1];
        expect(K >= 1 && K <= 8, "expected 1 to 8 taps");
        Mixer<T> m{};
        m.width = D, m.taps = K, m.first = 0, m.last = D;
        m.norm = norm_of(a, 0, D, eps);
        m.w_in = pointer<const T>(a[2], "w_in", {3 * D, D});
        m.b_in = pointer<const T>(a[3], "b_in", {3 * D});
        m.w = pointer<const T>(a[4], "w", {3 * D, K});
        m.b = pointer<const T>(a[5], "b", {3 * D});
        m.w_out = pointer<const T>(a[6], "w_out", {D, D});
        m.b_out = pointer<const T>(a[7], "b_out", {D});
        return m;
    }

    static Mlp<T> mlp_of(const Numbers& sizes, double eps, const Arrays& a) {
        const int64_t D = sizes[0], E = sizes[2];
        Mlp<T> p{};
        p.width = D, p.inner = E;
        p.norm = norm_of(a, 8, D, eps);
        p.w1 = pointer<const T>(a[10], "w1", {E, D});
        p.b1 = pointer<const T>(a[11], "b1", {E});
        p.w2 = pointer<const T>(a[12], "w2", {D, E});
        p.b2 = pointer<const T>(a[13], "b2", {D});
        return p;
    }

    // Blocks of the rows from `first` on, shared out over the threads.
    template <class Function>
    void run(
        int64_t batch, int64_t length, int64_t first, int threads, int64_t workspace,
        const Function& function
    ) const {
        const int64_t rows = functions_.block_rows, each = rounded(workspace);
        const int64_t parts = (length - first + rows - 1) / rows, blocks = batch * parts;
        if (blocks <= 0) return;
        const int64_t workers = blocks < threads ? blocks : (threads > 0 ? threads : 1);
        const Workspace<T> memory(each * workers);
        parallel_for(workers, int(workers), [&](int64_t worker) {
            for (int64_t block = blocks * worker / workers; block < blocks * (worker + 1) / workers; ++block) {
                const int64_t t0 = first + block % parts * rows;
                const int64_t t1 = t0 + rows < length ? t0 + rows : length;
                function(block / parts, t0, t1, memory.data() + worker * each);
            }
        });
    }
};

// Natural log-probabilities, among four letters, of those that follow. sizes: batch, rows, width.
// arrays: weight and bias of the last norm, x (batch, rows, width), w (4, width), before, codes,
// logits, out. The letters are codes (batch, rows) that stand after each row; with `before` (batch,
// 4), logits of one row more in front, there is one more of them. `logits` is (batch, rows, 4), `out`
// float of the shape of codes: NaN for codes that are none of the four.
template <class T>
void letters_as(const Numbers& sizes, double eps, const Arrays& a) {
    expect(sizes.size() == 3 && a.size() == 8, "expected 3 sizes and 8 arrays");
    const int64_t batch = sizes[0], rows = sizes[1], width = sizes[2];
    expect(batch >= 0 && rows >= 0 && width >= 0, "a size is negative");
    const Norm<T> norm{
        pointer<const T>(a[0], "norm weight", {width}, Want::MAYBE),
        pointer<const T>(a[1], "norm bias", {width}, Want::MAYBE), T(eps)
    };
    const T* const x = pointer<const T>(a[2], "x", {batch, rows, width});
    const T* const w = pointer<const T>(a[3], "w", {4, width});
    const T* const before = pointer<const T>(a[4], "before", {batch, 4}, Want::MAYBE);
    const int64_t letters = rows + (a[4] ? 1 : 0);
    const uint8_t* code = pointer<const uint8_t>(a[5], "codes", {batch, letters});
    T* const logits = pointer<T>(a[6], "logits", {batch, rows, 4});
    float* out = pointer<float>(a[7], "out", {batch, letters});
    table().of<T>().letter_logits(norm, x, batch * rows, width, w, logits);
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t t = a[4] ? -1 : 0; t < rows; ++t, ++code, ++out) {
            if (*code > 3) {
                *out = std::numeric_limits<float>::quiet_NaN();
                continue;
            }
            const T* const l = t < 0 ? before + 4 * b : logits + 4 * (b * rows + t);
            const T most = std::max(std::max(l[0], l[1]), std::max(l[2], l[3]));
            T total = 0;
            for (int v = 0; v < 4; ++v) total += std::exp(l[v] - most);
            *out = float(l[*code] - most - std::log(total));
        }
}

template <class T>
void add_class(nb::module_& m, const char* name) {
    nb::class_<Layer<T>>(m, name)
        .def(
            nb::init<const Numbers&, double, double, const Arrays&>(), "sizes"_a, "eps_mixer"_a,
            "eps_mlp"_a, "arrays"_a
        )
        .def(
            "open", &Layer<T>::open, "batch"_a, "length"_a, "first"_a, "x"_a, "u"_a, "gate"_a,
            "threads"_a, nb::call_guard<nb::gil_scoped_release>()
        )
        .def(
            "close", &Layer<T>::close, "batch"_a, "length"_a, "y"_a, "gate"_a, "x"_a, "out"_a,
            "threads"_a, nb::call_guard<nb::gil_scoped_release>()
        );
}

}  // namespace

void add_layer(nb::module_& m) {
    add_class<float>(m, "Layer32");
    add_class<double>(m, "Layer64");
    m.def(
        "letters",
        [](bool twice, const Numbers& sizes, double eps, const Arrays& arrays) {
            nb::gil_scoped_release release;
            (twice ? letters_as<double> : letters_as<float>)(sizes, eps, arrays);
        },
        "double"_a, "sizes"_a, "eps"_a, "arrays"_a
    );
}

}  // namespace megabase
