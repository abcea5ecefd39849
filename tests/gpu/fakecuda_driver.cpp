// Driver, device and contexts.
#include "fakecuda_call.hpp"

#include <dlfcn.h>

namespace {

const char *error_name(CUresult error) {
    switch (error) {
#define NAMED(name) case name: return #name;
        NAMED(CUDA_SUCCESS) NAMED(CUDA_ERROR_INVALID_VALUE) NAMED(CUDA_ERROR_OUT_OF_MEMORY)
        NAMED(CUDA_ERROR_NOT_INITIALIZED) NAMED(CUDA_ERROR_NO_DEVICE) NAMED(CUDA_ERROR_INVALID_DEVICE)
        NAMED(CUDA_ERROR_INVALID_CONTEXT) NAMED(CUDA_ERROR_INVALID_HANDLE) NAMED(CUDA_ERROR_ILLEGAL_STATE)
        NAMED(CUDA_ERROR_NOT_FOUND) NAMED(CUDA_ERROR_NOT_READY) NAMED(CUDA_ERROR_ILLEGAL_ADDRESS)
        NAMED(CUDA_ERROR_CONTEXT_IS_DESTROYED) NAMED(CUDA_ERROR_LAUNCH_FAILED) NAMED(CUDA_ERROR_NOT_PERMITTED)
        NAMED(CUDA_ERROR_NOT_SUPPORTED) NAMED(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        NAMED(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) NAMED(CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
        NAMED(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) NAMED(CUDA_ERROR_CAPTURED_EVENT)
        NAMED(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) NAMED(CUDA_ERROR_UNKNOWN)
        default: return "CUDA_ERROR_NAMED_IN_CUDA_H_ONLY";
    }
}

void destroy(Call &call, Context *context) {
    Machine &m = call.m;
    drain(call.lock, context);
    long leaks = 0;
    for (auto &[at, block] : m.blocks)
        if (block.live && block.context == context) block.live = false, ++leaks;
    for (auto it = m.streams.begin(); it != m.streams.end();)
        if (it->second->context != context) ++it;
        else leaks += it->second != context->legacy, it = m.streams.erase(it);
    for (auto it = m.events.begin(); it != m.events.end();)
        if (it->second->context != context) ++it;
        else ++leaks, it = m.events.erase(it);
    for (auto &[handle, graph] : m.graphs) leaks += graph.context == context;
    for (auto &[handle, graph] : m.executables) leaks += graph.context == context;
    if (leaks) call.misuse("of a context in which " + std::to_string(leaks) + " objects were not freed", CUDA_SUCCESS);
    context->sticky = CUDA_SUCCESS;
    context->legacy = nullptr;
}

void open(Machine &m, Context *context) {
    context->legacy = std::make_shared<Stream>();
    context->legacy->handle = m.handle<CUstream>();
    context->legacy->context = context;
    m.streams[context->legacy->handle] = context->legacy;
}

}  // namespace

// --- driver, device

API cuInit(unsigned) { BEGIN(NOTHING); m.initialised = true; return CUDA_SUCCESS; }
API cuDriverGetVersion(int *version) { BEGIN(NOTHING); *version = CUDA_VERSION; return CUDA_SUCCESS; }
API cuGetErrorName(CUresult error, const char **text) { *text = error_name(error); return CUDA_SUCCESS; }
API cuGetErrorString(CUresult error, const char **text) { *text = error_name(error); return CUDA_SUCCESS; }
API cuDeviceGetCount(int *count) { BEGIN(INIT); *count = 1; return CUDA_SUCCESS; }

API cuDeviceGet(CUdevice *device, int ordinal) {
    BEGIN(INIT);
    if (ordinal) return CUDA_ERROR_INVALID_DEVICE;
    *device = 0;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char *name, int length, CUdevice) {
    BEGIN(INIT);
    snprintf(name, length, "%s", m.name.c_str());
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice) { BEGIN(INIT); *bytes = m.total_bytes; return CUDA_SUCCESS; }

API cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    BEGIN(INIT);
    *value = m.attributes.count(attribute) ? m.attributes[attribute] : 0;
    return CUDA_SUCCESS;
}

API cuDeviceComputeCapability(int *major, int *minor, CUdevice) {
    BEGIN(INIT);
    *major = m.attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR];
    *minor = m.attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR];
    return CUDA_SUCCESS;
}

// --- contexts

API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
    BEGIN(INIT);
    if (!m.primary.refs++) open(m, &m.primary);
    *context = m.primary.handle;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice) {
    BEGIN(INIT | WAITS);
    if (!m.primary.refs) return call.misuse("of a primary context that nobody retains", CUDA_ERROR_INVALID_CONTEXT);
    if (m.primary.refs == 1) destroy(call, &m.primary);
    // pycuda's detach() pushes the context, releases it, and leaves it on the stack: not its caller's doing.
    auto &stack = call.thread().stack;
    if (call.follows_push && stack.back() == m.primary.handle) stack.pop_back(), call.thread().pops++;
    m.primary.refs--;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxReset_v2(CUdevice) {
    BEGIN(INIT | WAITS);
    if (m.primary.refs) destroy(call, &m.primary), open(m, &m.primary);
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
    BEGIN(INIT);
    *flags = 0;
    *active = m.primary.refs > 0;
    return CUDA_SUCCESS;
}

API cuCtxCreate_v4(CUcontext *handle, CUctxCreateParams *, unsigned, CUdevice) {
    BEGIN(INIT);
    auto *context = new Context;
    *handle = context->handle = m.handle<CUcontext>();
    context->refs = 1;
    m.contexts[*handle] = context;
    open(m, context);
    call.thread().stack.push_back(*handle);
    call.thread().pushes++;
    return CUDA_SUCCESS;
}

API cuCtxDestroy_v2(CUcontext handle) {
    BEGIN(INIT | WAITS);
    auto it = m.contexts.find(handle);
    if (it == m.contexts.end() || it->second->primary)
        return call.misuse("of a context that was not created", CUDA_ERROR_INVALID_CONTEXT);
    destroy(call, it->second);
    m.contexts.erase(it);
    auto &stack = call.thread().stack;
    if (!stack.empty() && stack.back() == handle) stack.pop_back(), call.thread().pops++;
    return CUDA_SUCCESS;
}

API cuCtxDetach(CUcontext handle) { return cuCtxDestroy_v2(handle); }

API cuCtxPushCurrent_v2(CUcontext handle) {
    BEGIN(INIT);
    Context *context = m.contexts.count(handle) ? m.contexts[handle] : nullptr;
    if (!context || !context->refs) return call.misuse("of a context that is not there", CUDA_ERROR_INVALID_CONTEXT);
    call.thread().stack.push_back(handle);
    call.thread().pushes++;
    call.thread().just_pushed = true;
    return CUDA_SUCCESS;
}

API cuCtxPopCurrent_v2(CUcontext *handle) {
    BEGIN(INIT);
    auto &stack = call.thread().stack;
    if (stack.empty()) return call.misuse("from an empty stack", CUDA_ERROR_INVALID_CONTEXT);
    if (handle) *handle = stack.back();
    stack.pop_back();
    call.thread().pops++;
    return CUDA_SUCCESS;
}

API cuCtxGetCurrent(CUcontext *handle) {
    BEGIN(INIT);
    auto &stack = call.thread().stack;
    *handle = stack.empty() ? nullptr : stack.back();
    return CUDA_SUCCESS;
}

API cuCtxSetCurrent(CUcontext handle) {
    BEGIN(INIT);
    auto &stack = call.thread().stack;
    if (!stack.empty()) stack.pop_back();
    if (handle) stack.push_back(handle);
    return CUDA_SUCCESS;
}

API cuCtxGetDevice(CUdevice *device) { BEGIN(CONTEXT | CLEANUP); *device = 0; return CUDA_SUCCESS; }
API cuCtxGetApiVersion(CUcontext, unsigned *version) { BEGIN(INIT); *version = CUDA_VERSION; return CUDA_SUCCESS; }

API cuCtxSynchronize() {
    BEGIN(CONTEXT | WAITS | UNSAFE);
    drain(call.lock, call.context);
    return call.context->sticky;
}

// --- how cuda-bindings and the runtime library find the calls

API cuGetProcAddress_v2(const char *symbol, void **function, int, cuuint64_t, CUdriverProcAddressQueryResult *status) {
    static void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    std::string name = symbol;
    if (name == "cuGraphInstantiate") name += "WithFlags";
    *function = nullptr;
    for (const char *suffix : {"_v4", "_v3", "_v2", ""})
        if (!*function) *function = dlsym(self, (name + suffix).c_str());
    if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
