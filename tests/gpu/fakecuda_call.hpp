// What every driver function begins with, and the shorthand they are written in.
#pragma once

#include "fakecuda.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace fake {

enum Need { NOTHING = 0, INIT = 1, CONTEXT = 3, WAITS = 4, UNSAFE = 8, CLEANUP = 16 };

// Begins every call: counts it, and finds out what forbids it.
struct Call {
    Machine &m = machine();
    Lock lock;
    std::string name;
    CUresult error = CUDA_SUCCESS;
    Context *context = nullptr;
    bool follows_push;  // in this thread

    Call(const char *called, int need) : lock(m.mutex), name(called) {
        m.calls.push_back(name);
        follows_push = std::exchange(thread().just_pushed, false);
        error = refusal(need);
    }

    Thread &thread() { return m.threads[thread_id()]; }
    CUresult misuse(const std::string &what, CUresult result) { return m.violation(name + " " + what, result); }

    CUresult refusal(int need) {
        if ((need & INIT) && !m.initialised) return CUDA_ERROR_NOT_INITIALIZED;
        if ((need & CONTEXT) == CONTEXT) {
            auto &stack = thread().stack;
            if (stack.empty() || !stack.back()) return misuse("without a current context", CUDA_ERROR_INVALID_CONTEXT);
            context = m.contexts[stack.back()];
            if (!context || (context->primary && !context->refs))
                return misuse("in a context that was destroyed", CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        if (CUresult injected = fault()) return injected;
        if ((need & WAITS) && is_in_callback())
            return misuse("within a callback, where CUDA may not be called", CUDA_ERROR_NOT_PERMITTED);
        if (context && context->sticky && !(need & CLEANUP)) return context->sticky;
        return (need & UNSAFE) && context ? forbidden_by_capture(context) : CUDA_SUCCESS;
    }

    CUresult fault() {
        auto it = m.faults.find(name);
        if (it == m.faults.end() || --it->second.in_calls > 0) return CUDA_SUCCESS;
        const Fault fault = it->second;
        if (--it->second.times == 0) m.faults.erase(it);
        if (fault.sticky && context) fail(context, fault.error);
        return fault.error;
    }

    StreamPtr stream(CUstream handle) {
        StreamPtr found = handle <= CU_STREAM_PER_THREAD ? context->legacy : nullptr;
        if (!found && m.streams.count(handle)) found = m.streams[handle];
        if (!found) error = misuse("with a stream that is not there", CUDA_ERROR_INVALID_HANDLE);
        else if (found->context != context) error = misuse("with a stream of another context", CUDA_ERROR_INVALID_HANDLE);
        return error ? nullptr : found;
    }

    std::shared_ptr<Event> event(CUevent handle) {
        if (!m.events.count(handle)) error = misuse("with an event that is not there", CUDA_ERROR_INVALID_HANDLE);
        else if (m.events[handle]->context != context)
            error = misuse("with an event of another context", CUDA_ERROR_INVALID_HANDLE);
        return error ? nullptr : m.events[handle];
    }

    // Device memory, or pinned memory at its device address.
    bool checked(CUdeviceptr at, size_t size) {
        std::string why;
        if (!find(at, size, &why)) error = misuse("of " + why, CUDA_ERROR_INVALID_VALUE);
        return !error;
    }

    // Host memory; sets `pinned`.
    bool checked_host(const void *at, size_t size, bool &pinned) {
        std::string why;
        auto address = reinterpret_cast<CUdeviceptr>(at);
        Block *block = find(address, size, &why);
        pinned = block && block->pinned;
        if (block ? !block->pinned : why != "memory that was never allocated")
            error = misuse("of " + (block ? "device memory as host memory" : why), CUDA_ERROR_INVALID_VALUE);
        return !error;
    }

    CUresult wait(const StreamPtr &stream) {
        finish(lock, {stream, stream->queued});
        return context->sticky;
    }

    // After what is in the blocking streams, as the synchronous calls do.
    CUresult now(std::function<void()> work) {
        drain(lock, context, true);
        if (!context->sticky) work();
        return context->sticky;
    }
};

inline Op operation(const char *kind, std::function<void()> work, std::vector<Range> uses) {
    Op op;
    op.kind = kind;
    op.work = [work] { if (work) work(); return 0; };
    op.ms = -1;
    op.uses = std::move(uses);
    return op;
}

inline void *host(CUdeviceptr at) { return reinterpret_cast<void *>(at); }
inline CUdeviceptr address(const void *at) { return reinterpret_cast<CUdeviceptr>(at); }

}  // namespace fake

using namespace fake;

#define API extern "C" CUresult
#define BEGIN(need) Call call(__func__, need); Machine &m = call.m; (void)m; if (call.error) return call.error
#define STREAM(name, handle) StreamPtr name = call.stream(handle); if (call.error) return call.error
#define EVENT(name, handle) std::shared_ptr<Event> name = call.event(handle); if (call.error) return call.error
#define REQUIRE(condition) if (!(condition)) return call.error ? call.error : CUDA_ERROR_INVALID_VALUE
