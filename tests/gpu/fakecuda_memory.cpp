// Memory and copies.
#include "fakecuda_call.hpp"

// --- memory

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    BEGIN(CONTEXT);
    *total = m.total_bytes;
    *free = m.total_bytes - std::min(m.total_bytes, used_bytes());
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *at, size_t size) {
    BEGIN(CONTEXT | UNSAFE);
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (used_bytes() + size > m.total_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    *at = allocate(size, call.context, false, 0);
    return *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API cuMemFree_v2(CUdeviceptr at) {
    BEGIN(CONTEXT | UNSAFE);
    if (!at) return CUDA_SUCCESS;
    CUresult result = release(call.lock, at, false, __func__);
    return result ? result : call.context->sticky;
}

API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr at) {
    BEGIN(CONTEXT);
    REQUIRE(call.checked(at, 0));
    auto it = --m.blocks.upper_bound(at);
    if (base) *base = it->first;
    if (size) *size = it->second.size;
    return CUDA_SUCCESS;
}

API cuMemHostAlloc(void **at, size_t size, unsigned flags) {
    BEGIN(CONTEXT | UNSAFE);
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    *at = host(allocate(size, call.context, true, flags));
    return *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API cuMemAllocHost_v2(void **at, size_t size) { return cuMemHostAlloc(at, size, 0); }

API cuMemFreeHost(void *at) {
    BEGIN(CONTEXT | UNSAFE);
    CUresult result = release(call.lock, address(at), true, __func__);
    return result ? result : call.context->sticky;
}

API cuMemHostGetFlags(unsigned *flags, void *at) {
    BEGIN(CONTEXT);
    Block *block = find(address(at), 0);
    REQUIRE(block && block->pinned);
    *flags = block->flags;
    return CUDA_SUCCESS;
}

API cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *at, unsigned) {
    BEGIN(CONTEXT);
    REQUIRE(call.checked(address(at), 0));
    *device = address(at);
    return CUDA_SUCCESS;
}

// --- copies

API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size) {
    BEGIN(CONTEXT | WAITS | UNSAFE);
    bool pinned;
    REQUIRE(call.checked(to, size) && call.checked_host(from, size, pinned));
    return call.now([=] { memcpy(host(to), from, size); });
}

API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size) {
    BEGIN(CONTEXT | WAITS | UNSAFE);
    bool pinned;
    REQUIRE(call.checked(from, size) && call.checked_host(to, size, pinned));
    return call.now([=] { memcpy(to, host(from), size); });
}

API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t size) {
    BEGIN(CONTEXT | WAITS | UNSAFE);
    REQUIRE(call.checked(to, size) && call.checked(from, size));
    return call.now([=] { memmove(host(to), host(from), size); });
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream handle) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    bool pinned;
    REQUIRE(call.checked(to, size) && call.checked_host(from, size, pinned));
    if (pinned || stream->capture) {
        std::vector<Range> uses = {{to, size}};
        if (pinned) uses.push_back({address(from), size});
        return enqueue(call.lock, stream, operation("htod", [=] { memcpy(host(to), from, size); }, uses));
    }
    m.pageable_copies++;  // the driver copies such memory before it returns
    auto begin = static_cast<const char *>(from);
    auto copied = std::make_shared<std::vector<char>>(begin, begin + size);
    return enqueue(call.lock, stream, operation("htod", [=] { memcpy(host(to), copied->data(), size); }, {{to, size}}));
}

API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream handle) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    bool pinned;
    REQUIRE(call.checked(from, size) && call.checked_host(to, size, pinned));
    std::vector<Range> uses = {{from, size}};
    if (pinned) uses.push_back({address(to), size});
    CUresult result = enqueue(call.lock, stream, operation("dtoh", [=] { memcpy(to, host(from), size); }, uses));
    if (result || pinned || stream->capture) return result;
    m.pageable_copies++;  // the driver waits for those
    return call.wait(stream);
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream handle) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    REQUIRE(call.checked(to, size) && call.checked(from, size));
    return enqueue(call.lock, stream,
                   operation("dtod", [=] { memmove(host(to), host(from), size); }, {{to, size}, {from, size}}));
}

// --- memset, of 1, 2 or 4 bytes; all are asynchronous to the host in CUDA too

namespace {
template <class T> CUresult set(const char *name, CUdeviceptr to, T value, size_t count, CUstream handle) {
    Call call(name, CONTEXT);
    if (call.error) return call.error;
    STREAM(stream, handle);
    REQUIRE(call.checked(to, count * sizeof(T)));
    auto work = [=] { std::fill_n(static_cast<T *>(host(to)), count, value); };
    return enqueue(call.lock, stream, operation("memset", work, {{to, count * sizeof(T)}}));
}
}  // namespace

API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n) { return set(__func__, to, value, n, nullptr); }
API cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t n) { return set(__func__, to, value, n, nullptr); }
API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t n) { return set(__func__, to, value, n, nullptr); }
API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream s) { return set(__func__, to, value, n, s); }
API cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t n, CUstream s) { return set(__func__, to, value, n, s); }
API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t n, CUstream s) { return set(__func__, to, value, n, s); }
