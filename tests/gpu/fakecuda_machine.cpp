#include "fakecuda.hpp"

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace fake {
namespace {

thread_local bool in_callback = false;

const size_t PAGE = 4096;

size_t whole_pages(size_t size) { return (size + PAGE - 1) / PAGE * PAGE; }

// Python waits for its lock inside callbacks: a caller that holds it and waits for one of them would wait for ever.
class PythonUnlocked {
public:
    PythonUnlocked() {
        auto held = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
        auto is_initialised = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
        if (held && is_initialised && is_initialised() && held())
            state_ = reinterpret_cast<void *(*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"))();
    }
    ~PythonUnlocked() {
        if (state_) reinterpret_cast<void (*)(void *)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"))(state_);
    }

private:
    void *state_ = nullptr;
};

bool overlaps(const Range &range, CUdeviceptr at, size_t size) {
    return range.at < at + size && at < range.at + range.size;
}

bool is_used(const Context *context, CUdeviceptr at, size_t size) {
    for (auto &[handle, stream] : machine().streams) {
        if (stream->context != context) continue;
        for (const Op &op : stream->queue)
            for (const Range &range : op.uses)
                if (overlaps(range, at, size)) return true;
    }
    return false;
}

CUresult check_uses(const Op &op) {
    std::string why;
    for (const Range &range : op.uses)
        if (!find(range.at, range.size, &why))
            return machine().violation("a queued " + op.kind + " ran on " + why, CUDA_ERROR_ILLEGAL_ADDRESS);
    return CUDA_SUCCESS;
}

void run(Lock &lock, const StreamPtr &stream) {
    Op op = std::move(stream->queue.front());
    stream->queue.pop_front();
    const uint64_t seq = stream->done + 1;
    double begin_ms = stream->clock_ms;
    for (const Point &point : op.after) begin_ms = std::max(begin_ms, point.stream->ends_ms[point.seq - 1]);
    int result = check_uses(op);
    if (!result && op.work) {
        stream->running = true;
        if (op.calls_out) {
            lock.unlock();
            in_callback = true;
            result = op.work();
            in_callback = false;
            lock.lock();
        } else {
            result = op.work();
        }
        stream->running = false;
    }
    if (stream->done < seq) {  // unless the context failed meanwhile
        stream->clock_ms = begin_ms + op.ms;
        stream->ends_ms.push_back(stream->clock_ms);
        stream->done = seq;
    }
    if (result) fail(stream->context, static_cast<CUresult>(result));
    machine().changed.notify_all();
}

void step_at_random(Lock &lock) {
    Machine &m = machine();
    for (int count = m.random() % 2 ? m.random() % 4 : 0; count > 0; --count) {
        std::vector<StreamPtr> busy;
        for (auto &[handle, stream] : m.streams)
            if (!stream->queue.empty()) busy.push_back(stream);
        if (!busy.empty()) step(lock, busy[m.random() % busy.size()]);
    }
}

}  // namespace

Machine &machine() {
    static Machine *machine = new Machine;  // outlives Python's objects, which call us while the process ends
    return *machine;
}

long thread_id() {
    static thread_local const long id = syscall(SYS_gettid);
    return id;
}

bool is_in_callback() { return in_callback; }

void wait_for_change(Lock &lock) {
    lock.unlock();  // never wait for Python's lock with ours: its holder may be waiting for that
    {
        PythonUnlocked unlocked;
        lock.lock();
        machine().changed.wait_for(lock, std::chrono::milliseconds(5));
        lock.unlock();
    }
    lock.lock();
}

Block *find(CUdeviceptr at, size_t size, std::string *why) {
    auto &blocks = machine().blocks;
    auto it = blocks.upper_bound(at);
    if (it == blocks.begin() || at - (--it)->first >= std::max<size_t>(it->second.size, 1)) {
        if (why) *why = "memory that was never allocated";
        return nullptr;
    }
    Block &block = it->second;
    std::string kind = block.pinned ? "pinned" : "device";
    if (!block.live) {
        if (why) *why = "freed " + kind + " memory";
        return nullptr;
    }
    if (at - it->first + size > block.size) {
        if (why)
            *why = std::to_string(at - it->first + size) + " bytes of " + kind + " memory that has " +
                   std::to_string(block.size);
        return nullptr;
    }
    return &block;
}

size_t used_bytes() {
    size_t used = machine().reserved_bytes;
    for (auto &[at, block] : machine().blocks)
        if (block.live && !block.pinned) used += block.size;
    return used;
}

CUdeviceptr allocate(size_t size, Context *context, bool pinned, unsigned flags) {
    void *at = mmap(nullptr, whole_pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 0;
    memset(at, 0xCD, size);  // nobody is to rely on zeros
    machine().blocks[reinterpret_cast<CUdeviceptr>(at)] = Block{size, context, pinned, true, flags};
    return reinterpret_cast<CUdeviceptr>(at);
}

CUresult release(Lock &lock, CUdeviceptr at, bool pinned, const char *who) {
    Machine &m = machine();
    auto it = m.blocks.find(at);
    if (it == m.blocks.end() || it->second.pinned != pinned)
        return m.violation(std::string(who) + " of an address that was not allocated so", CUDA_ERROR_INVALID_VALUE);
    if (!it->second.live) return m.violation(std::string(who) + " of freed memory", CUDA_ERROR_INVALID_VALUE);
    if (is_used(it->second.context, at, it->second.size)) {
        m.violation(std::string(who) + " of memory that queued operations still use", CUDA_SUCCESS);
        if (!in_callback) drain(lock, it->second.context);  // as the real one happens to
    }
    it->second.live = false;
    // The address stays taken, so that later uses are noticed.
    madvise(reinterpret_cast<void *>(at), whole_pages(it->second.size), MADV_DONTNEED);
    return CUDA_SUCCESS;
}

bool pending(const Stream &stream) { return stream.done < stream.queued; }

CUresult forbidden_by_capture(Context *context) {
    bool forbidden = false;
    for (auto &[handle, stream] : machine().streams) {
        if (!stream->capture || stream->context != context) continue;
        Capture &capture = *stream->capture;
        const bool mine = capture.thread == thread_id();
        if (capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL || (capture.mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && mine))
            forbidden = capture.broken = true;
    }
    return forbidden ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult enqueue(Lock &lock, const StreamPtr &stream, Op op) {
    Machine &m = machine();
    if (op.ms < 0) op.ms = m.times_ms.count(op.kind) ? m.times_ms[op.kind] : 1.0;
    if (stream->capture) {
        if (stream->capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        stream->capture->ops.push_back(std::move(op));
        return CUDA_SUCCESS;
    }
    const StreamPtr legacy = stream->context->legacy;
    for (auto &[handle, other] : m.streams) {
        if (stream != legacy || other == stream || other->context != stream->context) continue;
        if (other->flags & CU_STREAM_NON_BLOCKING) continue;
        if (other->capture) {
            other->capture->broken = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        if (pending(*other)) op.after.push_back({other, other->queued});
    }
    if (stream != legacy && !(stream->flags & CU_STREAM_NON_BLOCKING) && pending(*legacy))
        op.after.push_back({legacy, legacy->queued});
    stream->queue.push_back(std::move(op));
    stream->queued++;
    if (m.shuffled && !in_callback) step_at_random(lock);
    return CUDA_SUCCESS;
}

bool step(Lock &lock, const StreamPtr &stream) {
    if (stream->running || stream->queue.empty()) return false;
    for (const Point &point : stream->queue.front().after)
        if (point.stream->done < point.seq) return step(lock, StreamPtr(point.stream));
    run(lock, stream);
    return true;
}

void finish(Lock &lock, const Point &point) {
    while (point.stream->done < point.seq)
        if (!step(lock, point.stream)) wait_for_change(lock);
}

void drain(Lock &lock, Context *context, bool blocking_only) {
    std::vector<Point> ends;
    for (auto &[handle, stream] : machine().streams)
        if (stream->context == context && !(blocking_only && stream->flags & CU_STREAM_NON_BLOCKING))
            ends.push_back({stream, stream->queued});
    for (const Point &end : ends) finish(lock, end);
}

void fail(Context *context, CUresult error) {
    if (!context->sticky) context->sticky = error;
    for (auto &[handle, stream] : machine().streams) {
        if (stream->context != context) continue;
        stream->queue.clear();
        stream->done = stream->queued;
        stream->ends_ms.resize(stream->done, stream->clock_ms);
    }
    machine().changed.notify_all();
}

void reset(Lock &) {
    Machine &m = machine();
    for (auto &[at, block] : m.blocks)  // what is live may be in somebody's array
        if (!block.live) munmap(reinterpret_cast<void *>(at), whole_pages(block.size));
    m.blocks.clear();
    m.streams.clear();
    m.events.clear();
    m.graphs.clear();
    m.executables.clear();
    m.threads.clear();
    m.faults.clear();
    m.violations.clear();
    m.calls.clear();
    m.contexts.clear();
    m.times_ms = {{"event", 0.0}, {"wait", 0.0}};
    m.total_bytes = size_t(8) << 30;
    m.reserved_bytes = 0;
    m.pageable_copies = 0;
    m.shuffled = m.initialised = false;
    m.name = "Fake GPU";
    m.attributes = {
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8}, {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 9},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 58},    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024}, {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
        {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2},       {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    };
    m.primary = Context();
    m.primary.primary = true;
    m.primary.handle = m.handle<CUcontext>();
    m.contexts[m.primary.handle] = &m.primary;
}

}  // namespace fake
