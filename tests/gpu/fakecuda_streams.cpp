// Streams, events and graphs.
#include "fakecuda_call.hpp"

// --- streams

API cuStreamCreate(CUstream *handle, unsigned flags) {
    BEGIN(CONTEXT);
    auto stream = std::make_shared<Stream>();
    *handle = stream->handle = m.handle<CUstream>();
    stream->context = call.context;
    stream->flags = flags;
    m.streams[*handle] = stream;
    return CUDA_SUCCESS;
}

API cuStreamCreateWithPriority(CUstream *handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

API cuStreamDestroy_v2(CUstream handle) {
    BEGIN(CONTEXT | CLEANUP);
    STREAM(stream, handle);
    if (pending(*stream)) {
        call.misuse("of a stream with work in it", CUDA_SUCCESS);
        if (!is_in_callback()) finish(call.lock, {stream, stream->queued});
    }
    m.streams.erase(stream->handle);
    return call.context->sticky;
}

API cuStreamSynchronize(CUstream handle) {
    BEGIN(CONTEXT | WAITS | UNSAFE);
    STREAM(stream, handle);
    return call.wait(stream);
}

API cuStreamQuery(CUstream handle) {
    BEGIN(CONTEXT | UNSAFE);
    STREAM(stream, handle);
    step(call.lock, stream);
    return call.context->sticky ? call.context->sticky : pending(*stream) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

API cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    EVENT(event, event_handle);
    if (stream->capture && event->point.stream && !event->captured) {
        stream->capture->broken = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event->captured && !stream->capture) return CUDA_ERROR_CAPTURED_EVENT;
    if (event->captured || !event->point.stream) return CUDA_SUCCESS;
    Op op = operation("wait", nullptr, {});
    op.after.push_back(event->point);
    return enqueue(call.lock, stream, op);
}

API cuLaunchHostFunc(CUstream handle, CUhostFn function, void *data) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    Op op = operation("host", [=] { function(data); }, {});
    op.calls_out = true;
    return enqueue(call.lock, stream, op);
}

// --- events

API cuEventCreate(CUevent *handle, unsigned flags) {
    BEGIN(CONTEXT);
    auto event = std::make_shared<Event>();
    *handle = event->handle = m.handle<CUevent>();
    event->context = call.context;
    event->flags = flags;
    m.events[*handle] = event;
    return CUDA_SUCCESS;
}

API cuEventDestroy_v2(CUevent handle) {
    BEGIN(CONTEXT | CLEANUP);
    EVENT(event, handle);
    m.events.erase(handle);
    return call.context->sticky;
}

API cuEventRecord(CUevent handle, CUstream stream_handle) {
    BEGIN(CONTEXT);
    EVENT(event, handle);
    STREAM(stream, stream_handle);
    event->captured = stream->capture != nullptr;
    if (CUresult result = enqueue(call.lock, stream, operation("event", nullptr, {}))) return result;
    event->point = {stream, stream->queued};
    return CUDA_SUCCESS;
}

API cuEventQuery(CUevent handle) {
    BEGIN(CONTEXT | UNSAFE);
    EVENT(event, handle);
    if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
    const Point point = event->point;
    if (point.stream && point.stream->done < point.seq) step(call.lock, point.stream);
    if (call.context->sticky) return call.context->sticky;
    return point.stream && point.stream->done < point.seq ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

API cuEventSynchronize(CUevent handle) {
    BEGIN(CONTEXT | WAITS | UNSAFE);
    EVENT(event, handle);
    if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
    if (event->point.stream) finish(call.lock, Point(event->point));
    return call.context->sticky;
}

API cuEventElapsedTime_v2(float *ms, CUevent from, CUevent to) {
    BEGIN(CONTEXT);
    EVENT(first, from);
    EVENT(second, to);
    double at[2];
    for (int i = 0; i < 2; ++i) {
        const Event &event = i ? *second : *first;
        if (event.captured) return CUDA_ERROR_CAPTURED_EVENT;
        if (!event.point.stream || event.flags & CU_EVENT_DISABLE_TIMING)
            return call.misuse("with an event that was not recorded, or has no time", CUDA_ERROR_INVALID_HANDLE);
        if (event.point.stream->done < event.point.seq) return CUDA_ERROR_NOT_READY;
        at[i] = event.point.stream->ends_ms[event.point.seq - 1];
    }
    *ms = static_cast<float>(at[1] - at[0]);
    return CUDA_SUCCESS;
}

// --- graphs

API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    if (stream == call.context->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = std::make_unique<Capture>();
    stream->capture->mode = mode;
    stream->capture->thread = thread_id();
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    BEGIN(CONTEXT);
    *graph = nullptr;
    STREAM(stream, handle);
    if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && stream->capture->thread != thread_id())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    std::unique_ptr<Capture> capture = std::move(stream->capture);
    if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = m.handle<CUgraph>();
    m.graphs[*graph] = Graph{call.context, std::move(capture->ops)};
    return CUDA_SUCCESS;
}

API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    *status = !stream->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                        : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long) {
    BEGIN(CONTEXT);
    if (!m.graphs.count(graph)) return call.misuse("of a graph that is not there", CUDA_ERROR_INVALID_VALUE);
    *executable = m.handle<CUgraphExec>();
    m.executables[*executable] = m.graphs[graph];
    return CUDA_SUCCESS;
}

API cuGraphLaunch(CUgraphExec executable, CUstream handle) {
    BEGIN(CONTEXT);
    STREAM(stream, handle);
    if (!m.executables.count(executable)) return call.misuse("of a graph that is not there", CUDA_ERROR_INVALID_VALUE);
    for (const Op &op : std::vector<Op>(m.executables[executable].ops))
        if (CUresult result = enqueue(call.lock, stream, op)) return result;
    return CUDA_SUCCESS;
}

API cuGraphDestroy(CUgraph graph) {
    BEGIN(INIT);
    return m.graphs.erase(graph) ? CUDA_SUCCESS : call.misuse("of a graph that is not there", CUDA_ERROR_INVALID_VALUE);
}

API cuGraphExecDestroy(CUgraphExec graph) {
    BEGIN(INIT);
    if (m.executables.erase(graph)) return CUDA_SUCCESS;
    return call.misuse("of a graph that is not there", CUDA_ERROR_INVALID_VALUE);
}
