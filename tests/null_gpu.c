/* A CUDA device that takes every call and computes nothing: what stands for a GPU where there is none.
 *
 * Preloaded, it answers in place of CUDA's runtime, driver and libraries, so that ONNX Runtime's CUDA
 * provider and torch's CUDA build run as they are. Its memory is the host's and holds zeros, whatever is
 * copied there, so that every answer is a number; events keep the time; kernels do nothing. What a real
 * device refuses is refused here, too: waiting in a capture, a forked process that goes on with its
 * parent's device, memory beyond NULL_GPU_BYTES, and everything once NULL_GPU_COPIES copies were made,
 * as after an illegal access.
 *
 * Functions that are not here and that nothing but their status matters of are generated beside it.
 */

#define _GNU_SOURCE
#include <driver_types.h>
#include <vector_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define MEMORY (64ul << 30)

static size_t used;
static long copies;
static int failure; /* what cudaGetLastError gives next */
static int lost, capturing;
static unsigned long long captures;
static pid_t owner;
static __thread int device;

static long limit(const char *name) {
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

static int fail(int status) { return failure = status; }

/* A page ahead of what is asked for holds the size of both; nothing is resident before it is touched. */
static void *take(size_t size) {
    size_t *page = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *page = size + PAGE;
    return (char *)page + PAGE;
}

static size_t size_of(void *memory) { return *(size_t *)((char *)memory - PAGE); }

static void give_back(void *memory) {
    if (memory) munmap((char *)memory - PAGE, size_of(memory));
}

static int copy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    long most = limit("NULL_GPU_COPIES");
    if (most && __sync_add_and_fetch(&copies, 1) > most) lost = 1;
    if (lost) return fail(cudaErrorIllegalAddress);
    if (kind != cudaMemcpyHostToDevice) memcpy(to, from, size);
    return 0;
}

static int wait_for_it(void) {
    if (lost) return fail(cudaErrorIllegalAddress);
    return capturing ? fail(cudaErrorStreamCaptureUnsupported) : 0;
}

static int begin(void) {
    if (owner && owner != getpid()) return fail(cudaErrorInitializationError);
    owner = getpid();
    return 0;
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
}

static int handle(void *out) {
    *(void **)out = calloc(1, sizeof(double));
    return 0;
}

static int nothing(void) { return 0; }

__attribute__((destructor)) static void say_captures(void) {
    if (captures) fprintf(stderr, "null GPU: %llu graphs captured\n", captures);
}

/* The device. */
int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaGetDevice(int *which) { return *which = device, 0; }
int cudaSetDevice(int which) { return device = which, begin(); }
int cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, 0; }
int cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, 0; }
int cudaDeviceSynchronize(void) { return wait_for_it(); }
int cudaGetLastError(void) {
    int status = failure;
    failure = lost ? cudaErrorIllegalAddress : 0;
    return status;
}
int cudaPeekAtLastError(void) { return failure; }
const char *cudaGetErrorName(int status) {
    return status == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
const char *cudaGetErrorString(int status) {
    return status == cudaErrorMemoryAllocation           ? "out of memory"
           : status == cudaErrorIllegalAddress           ? "an illegal memory access was encountered"
           : status == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
                                                         : "initialization error";
}
int cudaGetDeviceProperties(struct cudaDeviceProp *is, int which) {
    memset(is, 0, sizeof *is);
    strcpy(is->name, "null GPU");
    is->major = 9, is->minor = 0, is->warpSize = 32, is->multiProcessorCount = 132;
    is->totalGlobalMem = MEMORY, is->l2CacheSize = 50 << 20;
    is->maxThreadsPerBlock = is->maxThreadsDim[0] = is->maxThreadsDim[1] = 1024;
    is->maxThreadsPerMultiProcessor = 2048, is->maxThreadsDim[2] = 64;
    is->maxGridSize[0] = 2147483647, is->maxGridSize[1] = is->maxGridSize[2] = 65535;
    is->regsPerBlock = is->regsPerMultiprocessor = 65536;
    is->sharedMemPerBlock = 48 << 10;
    is->sharedMemPerBlockOptin = is->sharedMemPerMultiprocessor = 227 << 10;
    return 0;
}
int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int of) {
    struct cudaDeviceProp is;
    cudaGetDeviceProperties(&is, of);
    switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = is.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = is.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = is.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = is.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxGridDimX: *value = is.maxGridSize[0]; break;
    case cudaDevAttrWarpSize: *value = is.warpSize; break;
    default: *value = 1024;
    }
    return 0;
}
int cudaDeviceGetPCIBusId(char *out, int size, int which) { return strncpy(out, "0000:00:00.0", size), 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, 0; }
int cudaDeviceGetDefaultMemPool(void *pool, int which) { return handle(pool); }

/* Memory. */
int cudaMalloc(void **out, size_t size) {
    size_t most = limit("NULL_GPU_BYTES");
    if (lost) return fail(cudaErrorIllegalAddress);
    if (most && used + size > most) {
        fprintf(stderr, "null GPU: no memory for %zu bytes\n", size);
        return fail(cudaErrorMemoryAllocation);
    }
    *out = take(size);
    __sync_add_and_fetch(&used, size_of(*out));
    return 0;
}
int cudaFree(void *memory) {
    if (memory) __sync_sub_and_fetch(&used, size_of(memory));
    return give_back(memory), 0;
}
int cudaMallocAsync(void **out, size_t size, cudaStream_t stream) { return cudaMalloc(out, size); }
int cudaMallocFromPoolAsync(void **out, size_t size, void *pool, cudaStream_t stream) { return cudaMalloc(out, size); }
int cudaFreeAsync(void *memory, cudaStream_t stream) { return cudaFree(memory); }
int cudaMallocHost(void **out, size_t size) { return *out = take(size), 0; }
int cudaHostAlloc(void **out, size_t size, unsigned flags) { return *out = take(size), 0; }
int cudaFreeHost(void *memory) { return give_back(memory), 0; }
int cudaMemGetInfo(size_t *left, size_t *all) {
    size_t most = limit("NULL_GPU_BYTES");
    *all = most ? most : MEMORY;
    return *left = *all - used, 0;
}
int cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) { return copy(to, from, size, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, size, kind);
}
int cudaMemset(void *to, int value, size_t size) { return memset(to, value, size), 0; }
int cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) { return memset(to, value, size), 0; }
int cudaPointerGetAttributes(struct cudaPointerAttributes *is, const void *memory) {
    memset(is, 0, sizeof *is);
    is->type = cudaMemoryTypeDevice, is->devicePointer = (void *)memory;
    return 0;
}
int cudaGetSymbolAddress(void **out, const void *symbol) {
    static char memory[1 << 16];
    return *out = memory, 0;
}

/* Streams, events and graphs. */
int cudaStreamCreate(cudaStream_t *out) { return handle(out); }
int cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) { return handle(out); }
int cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority) { return handle(out); }
int cudaStreamSynchronize(cudaStream_t stream) { return wait_for_it(); }
int cudaEventCreate(cudaEvent_t *out) { return handle(out); }
int cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) { return handle(out); }
int cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return *(double *)event = milliseconds(), 0; }
int cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return cudaEventRecord(event, stream); }
int cudaEventSynchronize(cudaEvent_t event) { return wait_for_it(); }
int cudaEventElapsedTime(float *out, cudaEvent_t from, cudaEvent_t to) {
    return *out = *(double *)to - *(double *)from, 0;
}
int cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) { return captures++, capturing = 1, 0; }
int cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) { return capturing = 0, handle(out); }
int cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out) {
    *out = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return 0;
}
int cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *number,
                             cudaGraph_t *graph, const void *nodes, const void *edges, size_t *count) {
    if (number) *number = captures;
    if (count) *count = 0;
    return cudaStreamIsCapturing(stream, status);
}
int cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags) { return handle(out); }
int cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags) { return handle(out); }
int cudaGraphGetNodes(cudaGraph_t graph, void *nodes, size_t *count) { return *count = 1, 0; }

/* Kernels. */
void **__cudaRegisterFatBinary(void *binary) {
    static void *registered;
    return &registered;
}
int cudaFuncGetAttributes(struct cudaFuncAttributes *is, const void *kernel) {
    memset(is, 0, sizeof *is);
    is->maxThreadsPerBlock = 1024, is->numRegs = 32, is->binaryVersion = is->ptxVersion = 90;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int threads, size_t shared, unsigned flags) {
    return *blocks = 2, 0;
}

/* Libraries. */
int cublasCreate_v2(void *out) { return handle(out); }
int cublasLtCreate(void *out) { return handle(out); }
int cublasGetVersion_v2(void *library, int *version) { return *version = 10 * CUDART_VERSION, 0; }
size_t cublasLtGetVersion(void) { return 10 * CUDART_VERSION; }
size_t cublasLtGetCudartVersion(void) { return CUDART_VERSION; }
int cublasLtMatmulAlgoGetHeuristic(void *library, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, void *results, int *found) {
    return *found = 1, 0;
}
int cudnnCreate(void *out) { return handle(out); }
int cudnnSetStream(void *library, void *stream) { return 0; }
int cudnnDestroy(void *library) { return 0; }
size_t cudnnGetVersion(void) { return 91300; }
const char *cudnnGetErrorString(int status) { return "error"; }

/* The driver, as the library itself and CUDA's runtime ask it. */
int cuInit(unsigned flags) { return begin(); }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *out, int which) { return *out = which, 0; }
int cuDeviceGetName(char *out, int size, int which) { return strncpy(out, "null GPU", size), 0; }
int cuDeviceTotalMem_v2(size_t *out, int which) { return *out = MEMORY, 0; }
int cuDevicePrimaryCtxGetState(int which, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
int cuCtxGetCurrent(void **out) { return *out = &owner, 0; }
int cuCtxSynchronize(void) { return lost ? cudaErrorIllegalAddress : 0; }
int cuGetErrorName(int status, const char **out) { return *out = "CUDA_ERROR_ILLEGAL_ADDRESS", 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags,
                                     enum cudaDriverEntryPointQueryResult *result) {
    if (result) *result = cudaDriverEntryPointSuccess;
    return *out = (void *)nothing, 0;
}
