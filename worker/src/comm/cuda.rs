//! The few functions of the CUDA runtime that libtorch's Rust bindings lack: devices, streams and events.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::dynamic::{Dynamic, GpuError, text_of};

/// Names of the runtime that libtorch is built for, the newest first; libtorch's own copy is in the process already.
const NAMES: [&str; 2] = ["libcudart.so.13", "libcudart.so.12"];
const SUCCESS: c_int = 0;
const NOT_READY: c_int = 600;
const NON_BLOCKING: c_uint = 1;
const DEFAULT_EVENT: c_uint = 0;

/// The stream that libtorch computes on.
pub(super) const COMPUTE: RawStream = ptr::null_mut();

pub(super) type RawStream = *mut c_void;
type RawEvent = *mut c_void;
type Code = c_int;

/// The CUDA runtime, loaded.
pub struct CudaRuntime {
    get_device_count: unsafe extern "C" fn(*mut c_int) -> Code,
    get_device_properties: unsafe extern "C" fn(*mut c_void, c_int) -> Code,
    get_device: unsafe extern "C" fn(*mut c_int) -> Code,
    set_device: unsafe extern "C" fn(c_int) -> Code,
    mem_get_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Code,
    stream_create: unsafe extern "C" fn(*mut RawStream, c_uint) -> Code,
    stream_destroy: unsafe extern "C" fn(RawStream) -> Code,
    stream_wait_event: unsafe extern "C" fn(RawStream, RawEvent, c_uint) -> Code,
    event_create: unsafe extern "C" fn(*mut RawEvent, c_uint) -> Code,
    event_destroy: unsafe extern "C" fn(RawEvent) -> Code,
    event_record: unsafe extern "C" fn(RawEvent, RawStream) -> Code,
    event_query: unsafe extern "C" fn(RawEvent) -> Code,
    event_elapsed: unsafe extern "C" fn(*mut f32, RawEvent, RawEvent) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn() -> Code,
}

/// What tells one GPU from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its name, for people.
    pub name: String,
    /// The same for all processes that see this GPU.
    pub uuid: [u8; 16],
}

impl CudaRuntime {
    /// Loads the file that `ILM_CUDART_LIBRARY` names, or else the runtime that libtorch uses.
    ///
    /// # Errors
    /// There is none.
    pub fn open() -> Result<Arc<Self>, GpuError> {
        let library = Dynamic::open("the CUDA runtime", "ILM_CUDART_LIBRARY", &NAMES)?;
        // SAFETY: the types of the fields are those of the CUDA runtime's C interface.
        unsafe {
            Ok(Arc::new(Self {
                get_device_count: library.function(c"cudaGetDeviceCount")?,
                get_device_properties: library.function(c"cudaGetDeviceProperties")?,
                get_device: library.function(c"cudaGetDevice")?,
                set_device: library.function(c"cudaSetDevice")?,
                mem_get_info: library.function(c"cudaMemGetInfo")?,
                stream_create: library.function(c"cudaStreamCreateWithFlags")?,
                stream_destroy: library.function(c"cudaStreamDestroy")?,
                stream_wait_event: library.function(c"cudaStreamWaitEvent")?,
                event_create: library.function(c"cudaEventCreateWithFlags")?,
                event_destroy: library.function(c"cudaEventDestroy")?,
                event_record: library.function(c"cudaEventRecord")?,
                event_query: library.function(c"cudaEventQuery")?,
                event_elapsed: library.function(c"cudaEventElapsedTime")?,
                error_string: library.function(c"cudaGetErrorString")?,
                last_error: library.function(c"cudaGetLastError")?,
            }))
        }
    }

    /// The GPUs that this process sees, at least one.
    ///
    /// # Errors
    /// CUDA sees none (its text says why), or does not answer.
    pub fn gpus(&self) -> Result<Vec<Gpu>, GpuError> {
        let mut count: c_int = 0;
        // SAFETY: one integer is written.
        self.check("cudaGetDeviceCount", unsafe { (self.get_device_count)(&raw mut count) })?;
        (0..count).map(|index| self.gpu(index)).collect()
    }

    fn gpu(&self, index: c_int) -> Result<Gpu, GpuError> {
        // The structure grows from version to version, to about 1 KiB by now; it always begins with name and UUID.
        const NAME: usize = 256;
        let mut properties = [0u64; 1024];
        // SAFETY: aligned memory of more than the structure's size is written.
        let code = unsafe { (self.get_device_properties)(properties.as_mut_ptr().cast(), index) };
        self.check("cudaGetDeviceProperties", code)?;
        let bytes: Vec<u8> = properties.iter().flat_map(|word| word.to_ne_bytes()).take(NAME + 16).collect();
        let (name, uuid) = bytes.split_at(NAME);
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let uuid = std::array::from_fn(|index| uuid[index]);
        Ok(Gpu { name: String::from_utf8_lossy(name).into_owned(), uuid })
    }

    /// The GPU that this thread uses.
    ///
    /// # Errors
    /// CUDA does not answer.
    pub fn device(&self) -> Result<usize, GpuError> {
        let mut index: c_int = 0;
        // SAFETY: one integer is written.
        self.check("cudaGetDevice", unsafe { (self.get_device)(&raw mut index) })?;
        Ok(index.unsigned_abs() as usize)
    }

    /// Makes a GPU the one that this thread uses from now on.
    ///
    /// # Errors
    /// There is no such GPU, or it is not usable.
    pub fn set_device(&self, index: usize) -> Result<(), GpuError> {
        // SAFETY: no memory is passed.
        self.check("cudaSetDevice", unsafe { (self.set_device)(index as c_int) })
    }

    /// Bytes of this thread's GPU that are free, and all of them.
    ///
    /// # Errors
    /// CUDA does not answer.
    pub fn memory(&self) -> Result<(usize, usize), GpuError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two integers are written.
        let code = unsafe { (self.mem_get_info)(&raw mut free, &raw mut total) };
        self.check("cudaMemGetInfo", code)?;
        Ok((free, total))
    }

    fn check(&self, call: &'static str, code: Code) -> Result<(), GpuError> {
        if code == SUCCESS {
            return Ok(());
        }
        self.forget_last_error();
        // SAFETY: CUDA returns a constant text for every number.
        let message = unsafe { text_of((self.error_string)(code)) };
        Err(GpuError::Call { call, message })
    }

    /// Clears this thread's last error. libtorch, which shares the runtime, asks for it after every kernel that it starts, and would
    /// take what was dealt with here for that kernel's.
    fn forget_last_error(&self) {
        // SAFETY: no memory is passed. What it returns is known already.
        unsafe { (self.last_error)() };
    }
}

/// A queue of work of the GPU beside the one that libtorch computes on.
pub(super) struct Stream {
    cuda: Arc<CudaRuntime>,
    raw: RawStream,
}

impl Stream {
    /// A stream that never waits for another unless told to.
    pub(super) fn new(cuda: &Arc<CudaRuntime>) -> Result<Self, GpuError> {
        let mut raw = ptr::null_mut();
        // SAFETY: one pointer is written.
        let code = unsafe { (cuda.stream_create)(&raw mut raw, NON_BLOCKING) };
        cuda.check("cudaStreamCreateWithFlags", code)?;
        Ok(Self { cuda: Arc::clone(cuda), raw })
    }

    pub(super) fn raw(&self) -> RawStream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and dropped once; CUDA lets work that is queued finish first. There is nobody to tell of errors.
        unsafe { (self.cuda.stream_destroy)(self.raw) };
    }
}

/// A mark in a stream.
pub(super) struct Event {
    cuda: Arc<CudaRuntime>,
    raw: RawEvent,
}

// SAFETY: CUDA's events belong to the process, and any of its threads may use them.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(cuda: &Arc<CudaRuntime>) -> Result<Self, GpuError> {
        let mut raw = ptr::null_mut();
        // SAFETY: one pointer is written.
        let code = unsafe { (cuda.event_create)(&raw mut raw, DEFAULT_EVENT) };
        cuda.check("cudaEventCreateWithFlags", code)?;
        Ok(Self { cuda: Arc::clone(cuda), raw })
    }

    /// Puts the mark behind everything that is queued on `stream`, which lives.
    pub(super) fn record(&self, stream: RawStream) -> Result<(), GpuError> {
        // SAFETY: the event lives, and so does the stream.
        self.cuda.check("cudaEventRecord", unsafe { (self.cuda.event_record)(self.raw, stream) })
    }

    /// What is queued on `stream` from now on waits for the mark as it is now; later marks of this event do not matter.
    pub(super) fn hold(&self, stream: RawStream) -> Result<(), GpuError> {
        // SAFETY: as in `record`.
        let code = unsafe { (self.cuda.stream_wait_event)(stream, self.raw, 0) };
        self.cuda.check("cudaStreamWaitEvent", code)
    }

    /// Whether the GPU has reached the mark.
    pub(super) fn is_reached(&self) -> Result<bool, GpuError> {
        // SAFETY: the event lives.
        match unsafe { (self.cuda.event_query)(self.raw) } {
            NOT_READY => {
                self.cuda.forget_last_error();
                Ok(false)
            }
            code => self.cuda.check("cudaEventQuery", code).map(|()| true),
        }
    }

    /// Time from `earlier` to this mark, both of them reached; zero if they came in the other order.
    pub(super) fn since(&self, earlier: &Self) -> Result<Duration, GpuError> {
        let mut milliseconds = 0.0;
        // SAFETY: one number is written, and both events live.
        let code = unsafe { (self.cuda.event_elapsed)(&raw mut milliseconds, earlier.raw, self.raw) };
        self.cuda.check("cudaEventElapsedTime", code)?;
        Ok(Duration::try_from_secs_f32(milliseconds / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and dropped once. There is nobody to tell of errors.
        unsafe { (self.cuda.event_destroy)(self.raw) };
    }
}
