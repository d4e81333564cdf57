// A CUDA driver without a GPU: `libcuda.so` with those functions that CubeCL calls, on one emulated device. Memory is the host's.
// Kernels come from compiler.cpp as shared libraries; a block's threads are run here one behind another, each up to where it
// waits for others. Streams do their work at once, in the order in which it was asked for, or as late as they may. What is not there
// answers CUDA_ERROR_NOT_SUPPORTED.
//
// While a stream captures a graph, what CUDA forbids meanwhile (allocating, freeing, waiting, loading modules) fails and spoils the
// graph.
//
// EMULATED_CUDA_ORDER=reversed   runs the threads of a block from the last to the first: many kernels that lack a barrier
//                                give something else then
// EMULATED_CUDA_CAPABILITY=90    another compute capability than 7.5: CubeCL then also tries kernels that need tensor cores or copies in the
//                                background, which NVIDIA's compiler alone compiles (compiler.cpp)
// EMULATED_CUDA_MULTIPROCESSORS=132   how many it has, 16 if nothing is said
// EMULATED_CUDA_STREAMS=late     a stream does nothing before somebody waits for it: what another stream computes with its memory without
//                                waiting is then wrong
// EMULATED_CUDA_GRAPHS=2         graphs that can be made of what was captured; further ones fail
// EMULATED_CUDA_IDLE=1           launches do nothing, and large copies copy nothing: what then takes time is the host's part
// EMULATED_CUDA_MEMORY=40        GiB that the device has, 8 if nothing is said; pieces of 4 GiB or more begin with zeros and take
//                                room on the host where they are written
// EMULATED_CUDA_LOG=FILE         a line for every launch
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "emulator.h"

namespace {

enum Status {
    success = 0,
    invalid_value = 1,
    out_of_memory = 2,
    invalid_image = 200,
    not_found = 500,
    launch_failed = 719,
    not_supported = 801,
    capture_unsupported = 900,
    capture_invalidated = 901,
};

// --- Threads of a block ---

enum class Waits { nothing, block, warp, mask, exchange, ballot, done };

struct Fiber : EmulatedThread {
    void *stack_pointer;
    Waits waits;
    uint32_t lane;
    // What it waits with: the lanes that must come, where it is, and what it brings.
    uint32_t mask;
    void *place;
    unsigned long long value;
    int from;
};

constexpr size_t stack_size = 256 << 10;

extern "C" void emulated_switch(void **from, void *to);
asm(R"(
.text
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

// A thread of the host, and the block that it is at.
struct Worker : EmulatedBlock {
    std::vector<Fiber> fibers;
    char *stacks = nullptr;
    size_t stacks_for = 0;
    void *stack_pointer = nullptr;
    void (*run)(void **) = nullptr;
    void **parameters = nullptr;
    std::vector<char> memory;

    ~Worker() {
        if (stacks) munmap(stacks, stacks_for * stack_size);
    }
};

thread_local Worker *worker;

Fiber &current() { return *static_cast<Fiber *>(worker->current); }

void wait(Waits why) {
    current().waits = why;
    emulated_switch(&current().stack_pointer, worker->stack_pointer);
}

void fiber_main() {
    worker->run(worker->parameters);
    wait(Waits::done);
    abort(); // nobody goes on with a thread that is done
}

void sync_block() { wait(Waits::block); }
void sync_warp(uint32_t mask) {
    current().mask = mask;
    wait(Waits::warp);
}
uint32_t active_mask(void *place) {
    current().place = place;
    wait(Waits::mask);
    return current().mask;
}
unsigned long long exchange(uint32_t mask, unsigned long long value, int from) {
    Fiber &fiber = current();
    fiber.mask = mask, fiber.value = value, fiber.from = from;
    wait(Waits::exchange);
    return current().value;
}
uint32_t ballot(uint32_t mask, bool value) {
    Fiber &fiber = current();
    fiber.mask = mask, fiber.value = value;
    wait(Waits::ballot);
    return (uint32_t)current().value;
}
EmulatedBlock *block() { return worker; }

const Emulator emulator = {block, sync_block, sync_warp, active_mask, exchange, ballot};

bool reversed() {
    static const bool value = [] {
        const char *order = getenv("EMULATED_CUDA_ORDER");
        return order && !strcmp(order, "reversed");
    }();
    return value;
}

bool idle() {
    static const bool value = getenv("EMULATED_CUDA_IDLE") != nullptr;
    return value;
}

// Lets those go on whose partners in the warp have all come. False if there are none.
bool resolve(Fiber *lanes, uint32_t count) {
    uint32_t alive = 0;
    for (uint32_t i = 0; i < count; i++)
        if (lanes[i].waits != Waits::done) alive |= 1u << i;
    for (uint32_t i = 0; i < count; i++) {
        Fiber &first = lanes[i];
        if (first.waits != Waits::warp && first.waits != Waits::exchange && first.waits != Waits::ballot) continue;
        const uint32_t needed = first.waits == Waits::warp ? alive : first.mask & alive;
        const Waits why = first.waits;
        const uint32_t mask = first.mask;
        bool all = true;
        for (uint32_t j = 0; j < count; j++)
            if (needed >> j & 1) all = all && lanes[j].waits == why && lanes[j].mask == mask;
        if (!all) continue;
        // What a lane that is not there gives is undefined: not a number, lest it look right.
        unsigned long long values[32], votes = 0;
        std::fill(values, values + 32, ~0ull);
        for (uint32_t j = 0; j < count; j++) {
            if (!(needed >> j & 1)) continue;
            values[j] = lanes[j].value;
            if (lanes[j].value) votes |= 1u << j;
        }
        for (uint32_t j = 0; j < count; j++) {
            if (!(needed >> j & 1)) continue;
            if (why == Waits::exchange) lanes[j].value = values[lanes[j].from];
            if (why == Waits::ballot) lanes[j].value = votes;
            lanes[j].waits = Waits::nothing;
        }
        return true;
    }
    // Who asks for the active mask: those at the earliest place together.
    void *place = nullptr;
    for (uint32_t i = 0; i < count; i++)
        if (lanes[i].waits == Waits::mask && (!place || lanes[i].place < place)) place = lanes[i].place;
    if (!place) return false;
    uint32_t mask = 0;
    for (uint32_t i = 0; i < count; i++)
        if (lanes[i].waits == Waits::mask && lanes[i].place == place) mask |= 1u << i;
    for (uint32_t i = 0; i < count; i++)
        if (mask >> i & 1) lanes[i].mask = mask, lanes[i].waits = Waits::nothing;
    return true;
}

// False if its threads wait for each other for ever.
bool run_block(Worker &w) {
    const uint32_t count = w.dim.x * w.dim.y * w.dim.z;
    if (w.stacks_for < count) {
        if (w.stacks) munmap(w.stacks, w.stacks_for * stack_size);
        w.stacks = (char *)mmap(nullptr, count * stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (w.stacks == MAP_FAILED) abort();
        w.stacks_for = count;
    }
    w.fibers.resize(count);
    for (uint32_t i = 0; i < count; i++) {
        Fiber &fiber = w.fibers[i];
        fiber.index = {i % w.dim.x, i / w.dim.x % w.dim.y, i / (w.dim.x * w.dim.y)};
        fiber.lane = i % 32;
        fiber.waits = Waits::nothing;
        void **top = (void **)(w.stacks + (i + 1) * stack_size);
        *--top = nullptr; // so that functions find the stack aligned
        *--top = (void *)fiber_main;
        for (int j = 0; j < 6; j++) *--top = nullptr;
        fiber.stack_pointer = top;
    }
    const uint32_t warps = (count + 31) / 32;
    for (;;) {
        uint32_t done = 0, at_barrier = 0;
        for (uint32_t i = 0; i < warps; i++) {
            const uint32_t warp = reversed() ? warps - 1 - i : i;
            Fiber *lanes = &w.fibers[warp * 32];
            const uint32_t n = std::min(32u, count - warp * 32);
            do {
                for (uint32_t j = 0; j < n; j++) {
                    Fiber &fiber = lanes[reversed() ? n - 1 - j : j];
                    if (fiber.waits != Waits::nothing) continue;
                    w.current = &fiber;
                    emulated_switch(&w.stack_pointer, fiber.stack_pointer);
                }
            } while (resolve(lanes, n));
            for (uint32_t j = 0; j < n; j++) {
                done += lanes[j].waits == Waits::done;
                at_barrier += lanes[j].waits == Waits::block;
            }
        }
        if (done == count) return true;
        if (done + at_barrier < count) return false;
        for (Fiber &fiber : w.fibers)
            if (fiber.waits == Waits::block) fiber.waits = Waits::nothing;
    }
}

// --- Modules and launches ---

struct Module {
    void *library;
    std::string name;
    void (*run)(void **);
    void (*enter)(EmulatedBlock *);
    size_t (*parameter)(size_t);
};

FILE *log_file() {
    static FILE *file = [] {
        const char *path = getenv("EMULATED_CUDA_LOG");
        return path ? fopen(path, "a") : nullptr;
    }();
    return file;
}

int capability() {
    const char *given = getenv("EMULATED_CUDA_CAPABILITY");
    return given ? atoi(given) : 75;
}

// What a block has if it asks.
size_t most_shared() { return (capability() == 80 ? 163 : capability() / 10 == 9 || capability() / 10 == 10 ? 227 : 99) << 10; }

Status launch(Module *module, uint3 grid, uint3 dim, size_t shared, void **parameters) {
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (!blocks || !dim.x || !dim.y || !dim.z || (uint64_t)dim.x * dim.y * dim.z > 1024 || dim.z > 64) return invalid_value;
    if (shared > most_shared() || grid.y > 65535 || grid.z > 65535) return invalid_value;
    if (idle()) return success;
    const auto start = std::chrono::steady_clock::now();
    static const unsigned hands = std::max(1u, std::thread::hardware_concurrency());
    const unsigned used = blocks >= 4 ? std::min<uint64_t>(hands, blocks) : 1;
    std::vector<char> failed(used, 0);
    static std::mutex one;
    std::lock_guard<std::mutex> held(one);
    static std::vector<Worker> workers(hands);
    auto work = [&](unsigned hand) {
        worker = &workers[hand];
        worker->dim = dim, worker->grid = grid;
        worker->run = module->run, worker->parameters = parameters;
        // What a block finds in shared memory is no number of anybody's.
        worker->memory.assign(shared + 1024, (char)0xff);
        worker->shared = (char *)(((uintptr_t)worker->memory.data() + 1023) & ~(uintptr_t)1023);
        module->enter(worker);
        const uint64_t from = blocks * hand / used, to = blocks * (hand + 1) / used;
        for (uint64_t i = from; i < to && !failed[hand]; i++) {
            worker->index = {(uint32_t)(i % grid.x), (uint32_t)(i / grid.x % grid.y), (uint32_t)(i / grid.x / grid.y)};
            memset(worker->shared, 0xff, shared);
            failed[hand] = !run_block(*worker);
        }
    };
    std::vector<std::thread> others;
    for (unsigned hand = 1; hand < used; hand++) others.emplace_back(work, hand);
    work(0);
    for (auto &other : others) other.join();
    if (FILE *file = log_file()) {
        const auto taken = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start);
        fprintf(file, "%s grid %u %u %u block %u %u %u shared %zu: %.3f ms\n", module->name.c_str(), grid.x, grid.y, grid.z, dim.x,
                dim.y, dim.z, shared, taken.count());
        fflush(file);
    }
    if (std::count(failed.begin(), failed.end(), 0) != (long)used) {
        fprintf(stderr, "emulated CUDA: threads of a block of %s wait for each other for ever\n", module->name.c_str());
        return launch_failed;
    }
    return success;
}

// --- Streams, events, graphs ---

struct Graph {
    std::vector<std::function<Status()>> steps;
    size_t launches = 0;
    bool spoilt = false;
};
struct Stream {
    std::unique_ptr<Graph> captured;
    // What is still to be done, if it is done late; how much was asked for, how much was begun, and what has failed.
    std::deque<std::function<Status()>> steps;
    uint64_t asked = 0, begun = 0;
    Status failed = success;
};
using Time = std::chrono::steady_clock::time_point;
struct Event {
    // When the device came to it, and behind what of which stream it stands.
    std::shared_ptr<Time> at = std::make_shared<Time>();
    Stream *stream = nullptr;
    uint64_t behind = 0;
};

bool late() {
    static const char *given = getenv("EMULATED_CUDA_STREAMS");
    return given && !strcmp(given, "late");
}

// All streams that ever were, and what is asked of one at a time. What a step waits for is done within it.
std::recursive_mutex in_order;
std::vector<Stream *> streams;

Stream *new_stream() {
    std::lock_guard<std::recursive_mutex> held(in_order);
    return streams.emplace_back(new Stream);
}

// Does what was asked of a stream first.
Status catch_up(Stream *stream, uint64_t behind) {
    std::lock_guard<std::recursive_mutex> held(in_order);
    while (stream->begun < behind && !stream->steps.empty()) {
        auto step = std::move(stream->steps.front());
        stream->steps.pop_front();
        stream->begun++;
        if (Status status = step(); status != success) stream->failed = status;
    }
    return stream->failed;
}

// Does all that was asked for.
Status catch_up() {
    std::lock_guard<std::recursive_mutex> held(in_order);
    Status status = success;
    for (size_t i = 0; i < streams.size(); i++)
        if (Status one = catch_up(streams[i], streams[i]->asked); one != success) status = one;
    return status;
}

// What is captured is kept, everything else is done.
Status enqueue(Stream *stream, std::function<Status()> step) {
    if (stream && stream->captured) return stream->captured->steps.push_back(std::move(step)), success;
    if (!late()) return step();
    std::lock_guard<std::recursive_mutex> held(in_order);
    // What is asked of no stream waits for all.
    if (!stream) return catch_up(), step();
    stream->steps.push_back(std::move(step)), stream->asked++;
    return success;
}

// The graph that is captured somewhere, if one is: CubeCL captures in the global mode, in which no thread may do what could wait for the device.
std::atomic<Graph *> capturing = nullptr;

bool forbidden(const char *call = __builtin_FUNCTION()) {
    Graph *graph = capturing;
    if (graph && !graph->spoilt) fprintf(stderr, "emulated CUDA: %s spoils the graph that is captured\n", call);
    if (graph) graph->spoilt = true;
    return graph;
}

struct Memory {
    std::mutex lock;
    std::map<uint64_t, size_t> device;
    size_t used = 0;
} memory;

size_t total_memory() {
    const char *given = getenv("EMULATED_CUDA_MEMORY");
    return (size_t)(given ? atoi(given) : idle() ? 80 : 8) << 30;
}

Status allocate(uint64_t *at, size_t bytes) {
    if (!bytes || !at) return invalid_value;
    if (forbidden()) return capture_unsupported;
    std::lock_guard<std::mutex> held(memory.lock);
    if (memory.used + bytes > total_memory()) return out_of_memory;
    const size_t mapped = (bytes + 4095) & ~(size_t)4095;
    void *place = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) return out_of_memory;
    // Memory that was never written is no number, but for pieces that the host may not have.
    if (!idle() && mapped < (size_t)4 << 30) memset(place, 0xff, mapped);
    memory.device[(uint64_t)place] = mapped;
    memory.used += mapped;
    *at = (uint64_t)place;
    return success;
}

Status release(uint64_t at) {
    if (forbidden()) return capture_unsupported;
    catch_up();
    std::lock_guard<std::mutex> held(memory.lock);
    auto found = memory.device.find(at);
    if (found == memory.device.end()) return invalid_value;
    munmap((void *)at, found->second);
    memory.used -= found->second;
    memory.device.erase(found);
    return success;
}

// Whether the bytes lie in one allocation.
bool allocated(uint64_t at, size_t bytes) {
    std::lock_guard<std::mutex> held(memory.lock);
    auto found = memory.device.upper_bound(at);
    if (found == memory.device.begin()) return false;
    --found;
    return at + bytes <= found->first + found->second;
}

int multiprocessors() {
    const char *given = getenv("EMULATED_CUDA_MULTIPROCESSORS");
    return given ? atoi(given) : 16;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return success; }
API cuDriverGetVersion(int *version) { return *version = 12090, success; }
API cuDeviceGetCount(int *count) { return *count = 1, success; }
API cuDeviceGet(int *device, int ordinal) { return ordinal ? invalid_value : (*device = 0, success); }
API cuDeviceGetName(char *name, int length, int) {
    // CubeCL takes devices of 7.5 by this name for ones without tensor cores, which kernel.h has not.
    snprintf(name, length, "Emulated GTX");
    return success;
}
API cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = total_memory(), success; }
API cuDeviceGetPCIBusId(char *, int, int) { return not_supported; }
API cuDeviceGetUuid(char *, int) { return not_supported; }
API cuDeviceGetUuid_v2(char *, int) { return not_supported; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
    static const std::map<int, int> values = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},       // threads of a block, and along its axes
        {5, 2147483647}, {6, 65535}, {7, 65535},        // blocks along the axes of a grid
        {8, 48 << 10}, {97, (int)most_shared()},           // shared memory of a block, and what it has if it asks
        {10, 32}, {16, multiprocessors()}, {75, capability() / 10}, {76, capability() % 10},
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return success;
}

static int the_context;
API cuDevicePrimaryCtxRetain(void **context, int) { return *context = &the_context, success; }
API cuDevicePrimaryCtxRelease_v2(int) { return success; }
API cuCtxSetCurrent(void *) { return success; }
API cuCtxGetCurrent(void **context) { return *context = &the_context, success; }
API cuCtxSynchronize() { return forbidden() ? capture_unsupported : catch_up(); }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = 0, success; }
API cuGetErrorName(int status, const char **name) {
    static const std::map<int, const char *> names = {
        {success, "CUDA_SUCCESS"}, {invalid_value, "CUDA_ERROR_INVALID_VALUE"}, {out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY"},
        {invalid_image, "CUDA_ERROR_INVALID_IMAGE"}, {launch_failed, "CUDA_ERROR_LAUNCH_FAILED"},
        {capture_unsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {capture_invalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}, {not_supported, "CUDA_ERROR_NOT_SUPPORTED"}, {not_found, "CUDA_ERROR_NOT_FOUND"},
    };
    auto found = names.find(status);
    *name = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return success;
}
API cuGetErrorString(int status, const char **text) { return cuGetErrorName(status, text); }

API cuMemAlloc_v2(uint64_t *at, size_t bytes) { return allocate(at, bytes); }
API cuMemAllocAsync(uint64_t *at, size_t bytes, Stream *) { return allocate(at, bytes); }
API cuMemFree_v2(uint64_t at) { return release(at); }
API cuMemFreeAsync(uint64_t at, Stream *) { return release(at); }
API cuMemAllocHost_v2(void **at, size_t bytes) { return forbidden() ? capture_unsupported : posix_memalign(at, 4096, bytes) ? out_of_memory : success; }
API cuMemFreeHost(void *at) { return forbidden() ? capture_unsupported : (catch_up(), free(at), success); }
API cuMemGetInfo_v2(size_t *available, size_t *total) {
    std::lock_guard<std::mutex> held(memory.lock);
    return *total = total_memory(), *available = total_memory() - memory.used, success;
}

static Status copied(Stream *stream, uint64_t to, uint64_t from, size_t bytes) {
    if (idle() && bytes > 1 << 20) return success;
    return enqueue(stream, [=] { return memmove((void *)to, (void *)from, bytes), success; });
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream) {
    if (!allocated(to, bytes)) return invalid_value;
    if (!late() || (stream && stream->captured)) return copied(stream, to, (uint64_t)from, bytes);
    // The host may write there again before the device has read it.
    auto kept = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
    return enqueue(stream, [=] { return memcpy((void *)to, kept->data(), bytes), success; });
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream) {
    return allocated(from, bytes) ? copied(stream, (uint64_t)to, from, bytes) : invalid_value;
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream *stream) {
    return allocated(to, bytes) && allocated(from, bytes) ? copied(stream, to, from, bytes) : invalid_value;
}
struct Copy2d {
    size_t from_x, from_y;
    int from_type;
    const void *from_host;
    uint64_t from_device;
    void *from_array;
    size_t from_pitch;
    size_t to_x, to_y;
    int to_type;
    void *to_host;
    uint64_t to_device;
    void *to_array;
    size_t to_pitch;
    size_t width, height;
};
API cuMemcpy2DAsync_v2(const Copy2d *given, Stream *stream) {
    const Copy2d copy = *given;
    if (copy.from_type > 2 || copy.to_type > 2) return not_supported; // 1 is the host, 2 the device
    const uint64_t from = (copy.from_type == 1 ? (uint64_t)copy.from_host : copy.from_device) + copy.from_y * copy.from_pitch + copy.from_x;
    const uint64_t to = (copy.to_type == 1 ? (uint64_t)copy.to_host : copy.to_device) + copy.to_y * copy.to_pitch + copy.to_x;
    if (copy.width > copy.from_pitch || copy.width > copy.to_pitch) return invalid_value;
    if (!copy.width || !copy.height || (idle() && copy.width * copy.height > 1 << 20)) return success;
    if (copy.from_type == 2 && !allocated(from, (copy.height - 1) * copy.from_pitch + copy.width)) return invalid_value;
    if (copy.to_type == 2 && !allocated(to, (copy.height - 1) * copy.to_pitch + copy.width)) return invalid_value;
    // As above.
    std::shared_ptr<std::vector<char>> kept;
    if (copy.from_type == 1 && late() && !(stream && stream->captured))
        kept = std::make_shared<std::vector<char>>((char *)from, (char *)from + (copy.height - 1) * copy.from_pitch + copy.width);
    return enqueue(stream, [=] {
        const char *begin = kept ? kept->data() : (const char *)from;
        for (size_t row = 0; row < copy.height; row++)
            memmove((void *)(to + row * copy.to_pitch), begin + row * copy.from_pitch, copy.width);
        return success;
    });
}
API cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Stream *stream) {
    if (!allocated(at, bytes)) return invalid_value;
    return enqueue(stream, [=] { return memset((void *)at, value, bytes), success; });
}

API cuModuleLoadData(Module **module, const void *image) {
    if (forbidden()) return capture_unsupported;
    const char *text = (const char *)image;
    // Code for a GPU does nothing here.
    if (idle() && !strncmp(text, "\x7f" "ELF", 4)) return *module = new Module{}, success;
    // What compiler.cpp says instead of PTX.
    if (strncmp(text, "emulated ", 9)) return invalid_image;
    std::string path(text + 9), name;
    const size_t end = path.find('\n');
    name = path.substr(end + 1), path = path.substr(0, end);
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "emulated CUDA: %s\n", dlerror());
        return invalid_image;
    }
    auto *made = new Module{library, name, (void (*)(void **))dlsym(library, "emulated_run"),
                            (void (*)(EmulatedBlock *))dlsym(library, "emulated_enter"),
                            (size_t(*)(size_t))dlsym(library, "emulated_parameter")};
    ((void (*)(const Emulator *))dlsym(library, "emulated_module"))(&emulator);
    return *module = made, success;
}
API cuModuleUnload(Module *) { return success; }
API cuModuleGetFunction(Module **function, Module *module, const char *name) {
    return !module->library || module->name == name ? (*function = module, success) : not_found;
}
API cuFuncSetAttribute(Module *, int, int value) { return value <= (int)most_shared() ? success : invalid_value; }
API cuFuncGetAttribute(int *value, int, Module *) { return *value = 0, success; }
API cuLaunchKernel(Module *module, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   Stream *stream, void **parameters, void **) {
    const uint3 grid = {gx, gy, gz}, dim = {bx, by, bz};
    const bool captured = stream && stream->captured;
    if (!captured && !late()) return launch(module, grid, dim, shared, parameters);
    // What the parameters are now is kept.
    auto kept = std::make_shared<std::vector<std::vector<char>>>();
    for (size_t i = 0; module->library && module->parameter(i) != ~(size_t)0; i++) {
        const char *at = (const char *)parameters[i];
        kept->emplace_back(at, at + module->parameter(i));
    }
    if (captured) stream->captured->launches++;
    return enqueue(stream, [=] {
        std::vector<void *> given;
        for (auto &one : *kept) given.push_back(one.data());
        return launch(module, grid, dim, shared, given.data());
    });
}

API cuStreamCreate(Stream **stream, unsigned) { return *stream = new_stream(), success; }
API cuStreamCreateWithPriority(Stream **stream, unsigned, int) { return *stream = new_stream(), success; }
API cuStreamDestroy_v2(Stream *stream) { return catch_up(stream, stream->asked), success; }
API cuStreamSynchronize(Stream *stream) {
    return forbidden() ? capture_unsupported : stream ? catch_up(stream, stream->asked) : catch_up();
}
API cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    if (!late() || !event->stream || (stream && stream->captured)) return success;
    Stream *other = event->stream;
    const uint64_t behind = event->behind;
    return enqueue(stream, [=] { return catch_up(other, behind), success; });
}
API cuEventCreate(Event **event, unsigned) { return *event = new Event, success; }
API cuEventDestroy_v2(Event *event) { return delete event, success; }
API cuEventRecord(Event *event, Stream *stream) {
    event->at = std::make_shared<Time>();
    auto at = event->at;
    if (!late() || !stream || stream->captured) return *at = std::chrono::steady_clock::now(), event->stream = nullptr, success;
    std::lock_guard<std::recursive_mutex> held(in_order);
    const Status status = enqueue(stream, [=] { return *at = std::chrono::steady_clock::now(), success; });
    event->stream = stream, event->behind = stream->asked;
    return status;
}
static Status reach(Event *event) { return event->stream ? catch_up(event->stream, event->behind) : success; }
API cuEventSynchronize(Event *event) { return forbidden() ? capture_unsupported : reach(event); }
API cuEventQuery(Event *event) { return forbidden() ? capture_unsupported : reach(event); }
static int elapsed(float *milliseconds, Event *start, Event *end) {
    reach(start), reach(end);
    // Nothing takes no time at all: the tuner divides by it. And an idle device is so slow that the tuner tries everything.
    *milliseconds = std::max(idle() ? 20.f : 1e-3f, std::chrono::duration<float, std::milli>(*end->at - *start->at).count());
    return success;
}
API cuEventElapsedTime(float *milliseconds, Event *start, Event *end) { return elapsed(milliseconds, start, end); }
API cuEventElapsedTime_v2(float *milliseconds, Event *start, Event *end) { return elapsed(milliseconds, start, end); }

API cuStreamBeginCapture_v2(Stream *stream, int) {
    if (capturing) return not_supported;
    stream->captured = std::make_unique<Graph>();
    return capturing = stream->captured.get(), success;
}
API cuStreamEndCapture(Stream *stream, Graph **graph) {
    if (!stream->captured) return invalid_value;
    capturing = nullptr;
    if (stream->captured->spoilt) return stream->captured.reset(), *graph = nullptr, capture_invalidated;
    return *graph = stream->captured.release(), success;
}
API cuStreamIsCapturing(Stream *stream, int *status) { return *status = stream && stream->captured ? 1 : 0, success; }
API cuGraphInstantiateWithFlags(Graph **made, Graph *graph, unsigned long long) {
    static std::atomic<int> count = 0;
    const char *most = getenv("EMULATED_CUDA_GRAPHS");
    return most && count++ >= atoi(most) ? not_supported : (*made = new Graph(*graph), success);
}
API cuGraphUpload(Graph *, Stream *) { return success; }
API cuGraphLaunch(Graph *graph, Stream *stream) {
    return enqueue(stream, [=] {
        for (auto &step : graph->steps)
            if (Status status = step(); status != success) return status;
        return success;
    });
}
API cuGraphDestroy(Graph *graph) { return delete graph, success; }
API cuGraphExecDestroy(Graph *graph) { return catch_up(), delete graph, success; }
API cuGraphGetNodes(Graph *graph, void **nodes, size_t *count) {
    // Nodes are numbers from one on; launches are said to come first.
    if (nodes)
        for (size_t i = 0; i < *count; i++) nodes[i] = (void *)(uintptr_t)(i < graph->launches ? 1 : 2);
    else
        *count = graph->steps.size();
    return success;
}
API cuGraphNodeGetType(void *node, int *type) { return *type = node == (void *)1 ? 0 : 1, success; }
API cuTensorMapEncodeTiled() { return idle() ? success : not_supported; }
API cuTensorMapEncodeIm2col() { return idle() ? success : not_supported; }
API cuTensorMapEncodeIm2colWide() { return idle() ? success : not_supported; }
