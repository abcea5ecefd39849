// A stand-in for the CUDA driver (libcuda.so.1) on machines without a GPU: the functions that fakecuda.py declares.
// The driver's own are in fakecuda_{driver,memory,streams}.cpp; what is not there is stubbed as CUDA_ERROR_NOT_SUPPORTED.
#include "fakecuda_call.hpp"

#include <sstream>

extern "C" void fakecuda_reset() { Lock lock(machine().mutex); reset(lock); }

extern "C" void fakecuda_device(const char *name, size_t total_bytes, size_t reserved_bytes) {
    Lock lock(machine().mutex);
    machine().name = name;
    machine().total_bytes = total_bytes;
    machine().reserved_bytes = reserved_bytes;
}

extern "C" void fakecuda_attribute(int attribute, int value) {
    Lock lock(machine().mutex);
    machine().attributes[attribute] = value;
}

extern "C" void fakecuda_time(const char *kind, double ms) { Lock lock(machine().mutex); machine().times_ms[kind] = ms; }

extern "C" void fakecuda_shuffle(unsigned seed) {
    Lock lock(machine().mutex);
    machine().random.seed(seed);
    machine().shuffled = true;
}

extern "C" void fakecuda_fail(const char *name, long in_calls, long times, int error, int sticky) {
    Lock lock(machine().mutex);
    machine().faults[name] = Fault{in_calls, times, static_cast<CUresult>(error), sticky != 0};
}

extern "C" void fakecuda_violation(const char *what) { Lock lock(machine().mutex); machine().violations.push_back(what); }

// Whether device code may touch a range; if not, that is a violation.
extern "C" int fakecuda_may_use(CUdeviceptr at, size_t size) {
    Lock lock(machine().mutex);
    std::string why;
    return find(at, size, &why) ? 1 : (machine().violation("a kernel touched " + why, CUDA_SUCCESS), 0);
}

// A function that pycuda links to and nobody has needed so far.
extern "C" int fakecuda_unsupported(const char *name) {
    Lock lock(machine().mutex);
    return machine().violation(std::string(name) + " is not in the stand-in", CUDA_ERROR_NOT_SUPPORTED);
}

// A kernel that is a function of this process; it returns a CUresult. `ms` below 0: what the kind takes.
extern "C" CUresult fakecuda_enqueue(CUstream handle, int (*function)(void *), void *data, double ms,
                                     const Range *uses, size_t count) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    Op op;
    op.kind = "kernel";
    op.work = [=] { return function(data); };
    op.calls_out = true;
    op.ms = ms;
    op.uses.assign(uses, uses + count);
    for (const Range &range : op.uses) REQUIRE(call.checked(range.at, range.size));
    return enqueue(call.lock, stream, op);
}

// JSON; returns the length it needs.
extern "C" size_t fakecuda_report(char *text, size_t size) {
    Lock lock(machine().mutex);
    Machine &m = machine();
    long device = 0, pinned = 0, busy = 0, streams = 0;
    for (auto &[at, block] : m.blocks) (block.pinned ? pinned : device) += block.live;
    for (auto &[handle, stream] : m.streams) busy += pending(*stream), streams += stream != stream->context->legacy;
    std::ostringstream out;
    auto quoted = [](const std::string &text) {
        std::string result = "\"";
        for (char c : text) {
            if (c == '"' || c == '\\') result += '\\';
            result += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
        }
        return result + "\"";
    };
    auto list = [&](const char *name, const std::vector<std::string> &items) {
        out << "\"" << name << "\": [";
        for (size_t i = 0; i < items.size(); ++i) out << (i ? ", " : "") << quoted(items[i]);
        out << "], ";
    };
    out << "{";
    list("violations", m.violations);
    list("calls", m.calls);
    out << "\"threads\": {";
    bool first = true;
    for (auto &[id, thread] : m.threads) {
        out << (first ? "" : ", ") << "\"" << id << "\": [" << thread.pushes << ", " << thread.pops << "]";
        first = false;
    }
    out << "}, \"device_blocks\": " << device << ", \"pinned_blocks\": " << pinned << ", \"streams\": " << streams
        << ", \"busy_streams\": " << busy << ", \"events\": " << m.events.size() << ", \"graphs\": " << m.graphs.size()
        << ", \"executables\": " << m.executables.size() << ", \"primary_references\": " << m.primary.refs
        << ", \"contexts\": " << m.contexts.size() - 1 << ", \"pageable_copies\": " << m.pageable_copies << "}";
    std::string all = out.str();
    if (size) snprintf(text, size, "%s", all.c_str());
    return all.size() + 1;
}

namespace {
const bool ready = [] { Lock lock(machine().mutex); reset(lock); return true; }();
}
