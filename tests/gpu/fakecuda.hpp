// The machine behind fakecuda.cpp: memory, streams, events and graphs of a GPU that does nothing until somebody waits.
#pragma once

#include <cuda.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace fake {

struct Stream;
using StreamPtr = std::shared_ptr<Stream>;
using Lock = std::unique_lock<std::mutex>;

struct Range { CUdeviceptr at; size_t size; };

// A place in a stream: passed once `seq` operations of it are done.
struct Point { StreamPtr stream; uint64_t seq = 0; };

struct Op {
    std::string kind;
    std::function<int()> work;  // returns a CUresult
    bool calls_out = false;     // into Python, where no lock may be held
    double ms = 0;
    std::vector<Range> uses;    // device or pinned memory that must be there when it runs
    std::vector<Point> after;
};

struct Capture { CUstreamCaptureMode mode; long thread; bool broken = false; std::vector<Op> ops; };

struct Context { CUcontext handle; int refs = 0; bool primary = false; CUresult sticky = CUDA_SUCCESS; StreamPtr legacy; };

struct Stream {
    CUstream handle; Context *context; unsigned flags = 0;
    std::deque<Op> queue;
    uint64_t queued = 0, done = 0;
    double clock_ms = 0;
    std::vector<double> ends_ms;  // of operation seq at [seq - 1]
    bool running = false;
    std::unique_ptr<Capture> capture;
};

struct Event { CUevent handle; Context *context; unsigned flags = 0; bool captured = false; Point point; };
struct Graph { Context *context; std::vector<Op> ops; };

struct Block { size_t size; Context *context; bool pinned; bool live = true; unsigned flags = 0; };

struct Thread { long pushes = 0, pops = 0; bool just_pushed = false; std::vector<CUcontext> stack; };

struct Fault { long in_calls, times; CUresult error; bool sticky; };

// Everything there is; one mutex guards it, and is not held while a callback runs.
struct Machine {
    std::mutex mutex;
    std::condition_variable changed;
    bool initialised = false;
    uintptr_t next_handle = 0x10000;
    std::string name = "Fake GPU";
    std::map<int, int> attributes;
    size_t total_bytes = size_t(8) << 30, reserved_bytes = 0;
    std::map<std::string, double> times_ms;
    std::mt19937 random; bool shuffled = false;
    Context primary;
    std::map<CUcontext, Context *> contexts;
    std::map<CUstream, StreamPtr> streams;
    std::map<CUevent, std::shared_ptr<Event>> events;
    std::map<CUgraph, Graph> graphs;
    std::map<CUgraphExec, Graph> executables;
    std::map<CUdeviceptr, Block> blocks;
    std::map<long, Thread> threads;
    std::map<std::string, Fault> faults;
    std::vector<std::string> violations, calls;
    long pageable_copies = 0;

    template <class H> H handle() { return reinterpret_cast<H>(next_handle += 0x100); }
    CUresult violation(const std::string &what, CUresult error) { violations.push_back(what); return error; }
};

Machine &machine();
long thread_id();
bool is_in_callback();
// Waits for a change; gives Python's lock to others meanwhile, if this thread has it.
void wait_for_change(Lock &lock);
void reset(Lock &lock);

// Address range -> its block, if it is live and the range lies within it; else why not.
Block *find(CUdeviceptr at, size_t size, std::string *why = nullptr);
size_t used_bytes();
CUdeviceptr allocate(size_t size, Context *context, bool pinned, unsigned flags);
CUresult release(Lock &lock, CUdeviceptr at, bool pinned, const char *who);

// Queues `op`, or records it; CUDA's rules for the legacy stream and for captures.
CUresult enqueue(Lock &lock, const StreamPtr &stream, Op op);
// Runs one operation that `stream` needs next; false if there is none, or another thread runs it.
bool step(Lock &lock, const StreamPtr &stream);
// Runs what must be run for `point` to be passed.
void finish(Lock &lock, const Point &point);
// Runs everything in a context, or in its blocking streams.
void drain(Lock &lock, Context *context, bool blocking_only = false);
void fail(Context *context, CUresult error);
bool pending(const Stream &stream);
// Unsafe calls break captures in progress that forbid them to this thread; CUDA_SUCCESS where none does.
CUresult forbidden_by_capture(Context *context);

}  // namespace fake
