// The Python module: turns addresses and strides into arguments, and cuts the work into tasks.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "host.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace megabase {
namespace {

// (address of the first element, stride from sequence to sequence, stride from row to row)
using View = std::tuple<uintptr_t, int64_t, int64_t>;

const Table* chosen = nullptr;

bool runs_here(const std::string& name) {
    if (name == "portable") return true;
#if defined(MB_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx2") return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw");
    if (name == "avx512") return avx512;
#if defined(MB_BF16)
    if (name == "avx512bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#endif
    return false;
}

const Table& table_named(const std::string& name) {
    if (!runs_here(name))
        throw std::invalid_argument("instruction set '" + name + "' does not run here");
#if defined(MB_X86)
#if defined(MB_BF16)
    if (name == "avx512bf16") return avx512bf16_table();
#endif
    if (name == "avx512") return avx512_table();
    if (name == "avx2") return avx2_table();
#endif
    return portable_table();
}

}  // namespace

const Table& table() {
    if (!chosen) {
        for (const char* name : {"avx512bf16", "avx512", "avx2", "portable"})
            if (runs_here(name)) {
                chosen = &table_named(name);
                break;
            }
    }
    return *chosen;
}

namespace {

template <class T>
Rows<T> rows(const std::optional<View>& view, int64_t length, bool against) {
    Rows<T> result;
    if (!view) return result;
    result.data = reinterpret_cast<T*>(std::get<0>(*view));
    result.sequence = std::get<1>(*view);
    result.row = std::get<2>(*view);
    if (against) {
        result.data += (length - 1) * result.row;
        result.row = -result.row;
    }
    return result;
}

// Blocks of channels in one task: enough tasks for all threads, with equal shares.
int64_t groups_of(int64_t batch, int64_t blocks, int threads) {
    if (batch >= threads || blocks <= 1) return 1;
    const int64_t wanted = (threads + batch - 1) / batch;
    return wanted < blocks ? wanted : blocks;
}

template <class T>
struct Cut {
    int64_t blocks, groups;
    Cut(int64_t batch, int64_t channels, int threads)
        : blocks((channels + table().of<T>().lanes - 1) / table().of<T>().lanes),
          groups(groups_of(batch, blocks, threads)) {}
    int64_t first(int64_t group) const { return group * blocks / groups; }
    int64_t largest() const { return (blocks + groups - 1) / groups; }
};

struct ScanSizes {
    int64_t batch, length, channels, states, steps;
    bool softplus, against;
};

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool>;

struct ScanInputs {
    std::optional<View> u, delta, B, C, z;
    Address A, D, bias, initial;
};

template <class T>
Scan<T> scan_arguments(const Sizes& sizes, const ScanInputs& in) {
    Scan<T> p{};
    bool against;
    std::tie(p.batch, p.length, p.channels, p.states, p.steps, p.softplus, against) = sizes;
    p.u = rows<const T>(in.u, p.length, against);
    p.delta = rows<const T>(in.delta, p.length, against);
    p.B = rows<const T>(in.B, p.length, against);
    p.C = rows<const T>(in.C, p.length, against);
    p.z = rows<const T>(in.z, p.length, against);
    p.A = pointer<const T>(in.A);
    p.D = pointer<const T>(in.D);
    p.bias = pointer<const T>(in.bias);
    p.initial = pointer<const T>(in.initial);
    return p;
}

template <class T, class Function>
void over_channels(const Scan<T>& p, int threads, int64_t elements_each, const Function& run) {
    // Workspaces are made before any thread starts, so that a lack of memory is an exception here.
    const Cut<T> cut(p.batch, p.channels, threads);
    const int64_t tasks = p.batch * cut.groups;
    const int64_t workers = tasks < threads ? tasks : threads;
    const int64_t each = (elements_each + 15) / 16 * 16;
    Workspace<T> memory(each * workers);
    std::atomic<int64_t> taken{0};
    parallel_for(workers, threads, [&](int64_t worker) {
        for (int64_t task; (task = taken.fetch_add(1)) < tasks;) {
            const int64_t group = task % cut.groups;
            run(task / cut.groups, cut.first(group), cut.first(group + 1), group,
                memory.data() + worker * each);
        }
    });
}

template <class T>
void scan_forward_as(
    const Sizes& sizes, const ScanInputs& in, const std::optional<View>& y, Address final_state,
    Address kept, int threads
) {
    Scan<T> p = scan_arguments<T>(sizes, in);
    p.y = rows<T>(y, p.length, std::get<6>(sizes));
    p.final_state = pointer<T>(final_state);
    p.kept = pointer<T>(kept);
    const Functions<T>& f = table().of<T>();
    const int64_t blocks = Cut<T>(p.batch, p.channels, threads).largest();
    over_channels<T>(
        p, threads, f.scan_forward_workspace(p, blocks),
        [&](int64_t b, int64_t first, int64_t last, int64_t, T* work) {
            f.scan_forward(p, b, first, last, work);
        }
    );
}

// Adds up `parts` blocks of (rows, width) numbers, `apart` from each other; where `against`, the sums
// are written from the last row to the first.
template <class T>
void add_parts(
    const T* from, int64_t parts, int64_t apart, int64_t rows, int64_t width, bool against,
    int threads, T* to
) {
    if (width == 0) return;
    const int64_t each = (4096 + width - 1) / width;
    const bool small = rows * width * parts < (1 << 17);
    parallel_for((rows + each - 1) / each, small ? 1 : threads, [&](int64_t task) {
        const int64_t end = (task + 1) * each < rows ? (task + 1) * each : rows;
        for (int64_t row = task * each; row < end; ++row) {
            T* out = to + (against ? rows - 1 - row : row) * width;
            const T* in = from + row * width;
            for (int64_t i = 0; i < width; ++i) out[i] = parts ? in[i] : T(0);
            for (int64_t part = 1; part < parts; ++part)
                for (int64_t i = 0; i < width; ++i) out[i] += in[part * apart + i];
        }
    });
}

struct ScanGradients {
    std::optional<View> dy, du, ddelta, dz;
    Address dfinal, kept, dA, dD, dbias, dinitial, dB, dC;
};

template <class T>
void scan_backward_as(
    const Sizes& sizes, const ScanInputs& in, const ScanGradients& grad, int threads
) {
    Scan<T> p = scan_arguments<T>(sizes, in);
    const bool against = std::get<6>(sizes);
    p.dy = rows<const T>(grad.dy, p.length, against);
    p.du = rows<T>(grad.du, p.length, against);
    p.ddelta = rows<T>(grad.ddelta, p.length, against);
    p.dz = rows<T>(grad.dz, p.length, against);
    p.dfinal = pointer<const T>(grad.dfinal);
    p.kept = pointer<T>(grad.kept);
    p.dinitial = pointer<T>(grad.dinitial);
    const Functions<T>& f = table().of<T>();
    const Cut<T> cut(p.batch, p.channels, threads);
    // Every group of channels has sums over its channels, every sequence sums over its positions.
    // Positions are counted along the direction of reading until they are added up.
    const int64_t along = p.length * p.states, each = p.batch * along, rates = p.channels * p.states;
    const bool added = cut.groups > 1 || against, several = p.batch != 1;
    Workspace<T> groups(added ? 2 * cut.groups * each : 0);
    Workspace<T> sequences(several ? p.batch * (rates + 2 * p.channels) : 0);
    T *dB = pointer<T>(grad.dB), *dC = pointer<T>(grad.dC);
    T *dA = pointer<T>(grad.dA), *dD = pointer<T>(grad.dD), *dbias = pointer<T>(grad.dbias);
    p.dB = added ? groups.data() : dB;
    p.dC = added ? groups.data() + cut.groups * each : dC;
    p.dA = several ? sequences.data() : dA;
    p.dD = several ? sequences.data() + p.batch * rates : dD;
    p.dbias = several ? p.dD + p.batch * p.channels : dbias;
    over_channels<T>(
        p, threads, f.scan_backward_workspace(p, cut.largest()),
        [&](int64_t b, int64_t first, int64_t last, int64_t group, T* work) {
            f.scan_backward(p, b, first, last, group, work);
        }
    );
    if (several) {
        add_parts(p.dA, p.batch, rates, p.channels, p.states, false, threads, dA);
        add_parts(p.dD, p.batch, p.channels, int64_t(1), p.channels, false, threads, dD);
        add_parts(p.dbias, p.batch, p.channels, int64_t(1), p.channels, false, threads, dbias);
    }
    if (added)
        for (int64_t b = 0; b < p.batch; ++b) {
            const int64_t at = b * along;
            const auto add = [&](const T* from, T* to) {
                add_parts(from + at, cut.groups, each, p.length, p.states, against, threads, to + at);
            };
            add(p.dB, dB), add(p.dC, dC);
        }
}

constexpr int64_t CONV_ROWS = 128;

using ConvSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;

template <class T>
Conv<T> conv_arguments(
    const ConvSizes& sizes, const std::optional<View>& x, const std::optional<View>& past,
    Address weight, Address bias
) {
    Conv<T> p{};
    bool against;
    std::tie(p.batch, p.length, p.channels, p.taps, against) = sizes;
    p.x = rows<const T>(x, p.length, against);
    p.past = rows<const T>(past, p.taps - 1, false);
    p.weight = pointer<const T>(weight);
    p.bias = pointer<const T>(bias);
    return p;
}

int64_t conv_tasks(int64_t batch, int64_t length) {
    return batch * ((length + CONV_ROWS - 1) / CONV_ROWS);
}

template <class Function>
void over_rows(int64_t batch, int64_t length, int threads, const Function& run) {
    const int64_t parts = (length + CONV_ROWS - 1) / CONV_ROWS;
    parallel_for(batch * parts, threads, [&](int64_t task) {
        const int64_t begin = task % parts * CONV_ROWS;
        run(task / parts, begin, begin + CONV_ROWS < length ? begin + CONV_ROWS : length, task);
    });
}

template <class T>
void conv_forward_as(
    const ConvSizes& sizes, const std::optional<View>& x, const std::optional<View>& past,
    Address weight, Address bias, const std::optional<View>& y, int threads
) {
    Conv<T> p = conv_arguments<T>(sizes, x, past, weight, bias);
    p.y = rows<T>(y, p.length, std::get<4>(sizes));
    over_rows(p.batch, p.length, threads, [&](int64_t b, int64_t begin, int64_t end, int64_t) {
        table().of<T>().conv_forward(p, b, begin, end);
    });
}

template <class T>
void conv_backward_as(
    const ConvSizes& sizes, const std::optional<View>& x, const std::optional<View>& past,
    Address weight, Address bias, const std::optional<View>& dy, const std::optional<View>& dx,
    const std::optional<View>& dpast, Address dweight, Address dbias, int threads
) {
    Conv<T> p = conv_arguments<T>(sizes, x, past, weight, bias);
    const bool against = std::get<4>(sizes);
    p.dy = rows<const T>(dy, p.length, against);
    p.dx = rows<T>(dx, p.length, against);
    p.dpast = rows<T>(dpast, p.taps - 1, false);
    p.dweight = pointer<T>(dweight);
    p.dbias = pointer<T>(dbias);
    over_rows(p.batch, p.length, threads, [&](int64_t b, int64_t begin, int64_t end, int64_t task) {
        table().of<T>().conv_backward(p, b, begin, end, task);
    });
}

// The exponentials of a scan alone: every block of channels runs through `positions` step sizes.
template <class T>
double exponentials_as(int64_t blocks, int64_t positions, int64_t states, int threads) {
    const Functions<T>& f = table().of<T>();
    Workspace<T> steps(positions * f.lanes), rates(states * f.lanes);
    for (int64_t i = 0; i < positions * f.lanes; ++i) steps.data()[i] = T(0.001) * T(1 + i % 97);
    for (int64_t i = 0; i < states * f.lanes; ++i) rates.data()[i] = T(-1.5) * T(1 + i / f.lanes);
    std::atomic<double> total{0};
    parallel_for(blocks, threads, [&](int64_t) {
        const double part = f.exponentials(steps.data(), rates.data(), positions, states);
        double seen = total.load();
        while (!total.compare_exchange_weak(seen, seen + part)) {
        }
    });
    return total.load();
}

}  // namespace
}  // namespace megabase

NB_MODULE(_megabase_kernels, m) {
    using namespace megabase;
    m.def("instruction_set", [] { return std::string(table().name); });
    m.def("runs_here", &runs_here, "name"_a);
    m.def("use", [](const std::string& name) { chosen = &table_named(name); }, "name"_a);
    m.def("parallel_runtime", [] { return std::string(parallel_runtime()); });
    m.def(
        "scan_forward",
        [](bool twice, Sizes sizes, std::optional<View> u, std::optional<View> delta, Address A,
           std::optional<View> B, std::optional<View> C, Address D, std::optional<View> z,
           Address bias, Address initial, std::optional<View> y, Address final_state, Address kept,
           int threads) {
            nb::gil_scoped_release release;
            const ScanInputs in{u, delta, B, C, z, A, D, bias, initial};
            (twice ? scan_forward_as<double> : scan_forward_as<float>)(
                sizes, in, y, final_state, kept, threads
            );
        },
        "double"_a, "sizes"_a, "u"_a, "delta"_a, "A"_a, "B"_a, "C"_a, "D"_a, "z"_a.none(),
        "bias"_a, "initial"_a, "y"_a, "final_state"_a, "kept"_a, "threads"_a
    );
    m.def(
        "scan_backward",
        [](bool twice, Sizes sizes, std::optional<View> u, std::optional<View> delta, Address A,
           std::optional<View> B, std::optional<View> C, Address D, std::optional<View> z,
           Address bias, Address initial, std::optional<View> dy, Address dfinal, Address kept,
           std::optional<View> du, std::optional<View> ddelta, Address dA, Address dB, Address dC,
           Address dD, std::optional<View> dz, Address dbias, Address dinitial, int threads) {
            nb::gil_scoped_release release;
            const ScanInputs in{u, delta, B, C, z, A, D, bias, initial};
            const ScanGradients grad{dy, du, ddelta, dz, dfinal, kept, dA, dD, dbias, dinitial, dB, dC};
            (twice ? scan_backward_as<double> : scan_backward_as<float>)(sizes, in, grad, threads);
        },
        "double"_a, "sizes"_a, "u"_a, "delta"_a, "A"_a, "B"_a, "C"_a, "D"_a, "z"_a.none(),
        "bias"_a, "initial"_a, "dy"_a, "dfinal"_a, "kept"_a, "du"_a, "ddelta"_a, "dA"_a, "dB"_a,
        "dC"_a, "dD"_a, "dz"_a.none(), "dbias"_a, "dinitial"_a, "threads"_a
    );
    m.def("conv_tasks", &conv_tasks, "batch"_a, "length"_a);
    m.def(
        "conv_forward",
        [](bool twice, ConvSizes sizes, std::optional<View> x, std::optional<View> past,
           Address weight, Address bias, std::optional<View> y, int threads) {
            nb::gil_scoped_release release;
            (twice ? conv_forward_as<double> : conv_forward_as<float>)(
                sizes, x, past, weight, bias, y, threads
            );
        },
        "double"_a, "sizes"_a, "x"_a, "past"_a.none(), "weight"_a, "bias"_a, "y"_a, "threads"_a
    );
    m.def(
        "conv_backward",
        [](bool twice, ConvSizes sizes, std::optional<View> x, std::optional<View> past,
           Address weight, Address bias, std::optional<View> dy, std::optional<View> dx,
           std::optional<View> dpast, Address dweight, Address dbias, int threads) {
            nb::gil_scoped_release release;
            (twice ? conv_backward_as<double> : conv_backward_as<float>)(
                sizes, x, past, weight, bias, dy, dx, dpast, dweight, dbias, threads
            );
        },
        "double"_a, "sizes"_a, "x"_a, "past"_a.none(), "weight"_a, "bias"_a, "dy"_a, "dx"_a,
        "dpast"_a.none(), "dweight"_a, "dbias"_a, "threads"_a
    );
    m.def(
        "exponentials",
        [](bool twice, int64_t blocks, int64_t positions, int64_t states, int threads) {
            nb::gil_scoped_release release;
            return (twice ? exponentials_as<double> : exponentials_as<float>)(
                blocks, positions, states, threads
            );
        },
        "double"_a, "blocks"_a, "positions"_a, "states"_a, "threads"_a
    );
    add_blocked(m);
    add_layer(m);
    m.def("lanes", [](bool twice) { return twice ? table().twice.lanes : table().single.lanes; }, "double"_a);
    m.def(
        "exponential",
        [](bool twice, Address x, Address y, int64_t count) {
            if (twice)
                table().twice.exponential(pointer<const double>(x), pointer<double>(y), count);
            else
                table().single.exponential(pointer<const float>(x), pointer<float>(y), count);
        },
        "double"_a, "x"_a, "y"_a, "count"_a
    );
}
