// Measures the limits of the machine, with which measured speeds are compared.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

// Bytes per second that all threads together read from a buffer of `bytes`, which should be larger than the caches: the
// best pass of some `seconds`. Throws std::bad_alloc.
double read_bandwidth(ThreadPool& pool, size_t bytes, double seconds);

// Multiply-adds of int8 per second of all threads together, without any access to memory: the best of some `seconds`.
// 0 for the scalar kernels.
double integer_peak(ThreadPool& pool, const Kernels& kernels, double seconds);

}  // namespace mobilemoe
