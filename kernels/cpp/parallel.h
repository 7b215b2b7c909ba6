// Tasks on several threads.
#pragma once

#include <cstdint>
#include <functional>

namespace megabase {

// Run task(0) ... task(count - 1) on up to `threads` threads; returns when all are done. `task`
// must not throw. Where the process has an OpenMP runtime of the GNU interface (torch brings one),
// its threads are used: a second pool would wait for processors on which the first one spins.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task);

// "openmp" or "threads": what parallel_for uses in this process.
const char* parallel_runtime();

}  // namespace megabase
