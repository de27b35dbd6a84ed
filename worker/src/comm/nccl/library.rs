//! NCCL as it is found when the program runs: a communicator with the three collectives of a training step.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use crate::comm::cuda::RawStream;
use crate::comm::dynamic::{Dynamic, GpuError, text_of};

/// A wheel's libtorch has its own copy in the process already, under the first name.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
const SUCCESS: Code = 0;
/// Of a call that goes on in the background.
const IN_PROGRESS: Code = 7;
const FLOAT: c_int = 7;
const SUM: c_int = 0;

type Code = c_int;
type RawComm = *mut c_void;

/// What the ranks of one communicator have in common.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; UniqueId::BYTES]);

impl UniqueId {
    const BYTES: usize = 128;

    /// To be sent to other ranks.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As another rank sent it, if it did.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// NCCL, loaded.
pub struct NcclLibrary {
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    comm_init_rank: unsafe extern "C" fn(*mut RawComm, c_int, UniqueId, c_int) -> Code,
    comm_destroy: unsafe extern "C" fn(RawComm) -> Code,
    comm_abort: unsafe extern "C" fn(RawComm) -> Code,
    comm_get_async_error: unsafe extern "C" fn(RawComm, *mut Code) -> Code,
    all_reduce: unsafe extern "C" fn(*const f32, *mut f32, usize, c_int, c_int, RawComm, RawStream) -> Code,
    reduce_scatter:
        unsafe extern "C" fn(*const f32, *mut f32, usize, c_int, c_int, RawComm, RawStream) -> Code,
    all_gather: unsafe extern "C" fn(*const f32, *mut f32, usize, c_int, RawComm, RawStream) -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    get_last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
}

impl NcclLibrary {
    /// Loads the file that `ILM_NCCL_LIBRARY` names, or else the library that libtorch uses.
    ///
    /// # Errors
    /// There is none.
    pub fn open() -> Result<Arc<Self>, GpuError> {
        let library = Dynamic::open("NCCL", "ILM_NCCL_LIBRARY", &NAMES)?;
        // SAFETY: the types of the fields are those of NCCL's C interface.
        unsafe {
            Ok(Arc::new(Self {
                get_version: library.function(c"ncclGetVersion")?,
                get_unique_id: library.function(c"ncclGetUniqueId")?,
                comm_init_rank: library.function(c"ncclCommInitRank")?,
                comm_destroy: library.function(c"ncclCommDestroy")?,
                comm_abort: library.function(c"ncclCommAbort")?,
                comm_get_async_error: library.function(c"ncclCommGetAsyncError")?,
                all_reduce: library.function(c"ncclAllReduce")?,
                reduce_scatter: library.function(c"ncclReduceScatter")?,
                all_gather: library.function(c"ncclAllGather")?,
                get_error_string: library.function(c"ncclGetErrorString")?,
                get_last_error: library.function(c"ncclGetLastError")?,
            }))
        }
    }

    /// The version as one number: 2.29.7 is 22907.
    ///
    /// # Errors
    /// NCCL does not answer.
    pub fn version(&self) -> Result<u32, GpuError> {
        let mut version: c_int = 0;
        // SAFETY: one integer is written.
        self.check("ncclGetVersion", unsafe { (self.get_version)(&raw mut version) }, ptr::null_mut())?;
        Ok(version.unsigned_abs())
    }

    /// A new id, to be made by one rank and sent to the others.
    ///
    /// # Errors
    /// No network interface is up.
    pub fn unique_id(&self) -> Result<UniqueId, GpuError> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: an id is written.
        let code = unsafe { (self.get_unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", code, ptr::null_mut())?;
        Ok(id)
    }

    fn check(&self, call: &'static str, code: Code, comm: RawComm) -> Result<(), GpuError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: NCCL returns constant texts, the second one valid until its next error in this thread.
        let (kind, detail) =
            unsafe { (text_of((self.get_error_string)(code)), text_of((self.get_last_error)(comm))) };
        let detail = detail.trim();
        let message = if detail.is_empty() { kind } else { format!("{kind} ({detail})") };
        Err(GpuError::Call { call, message })
    }
}

/// The connection of this rank's GPU with those of the others.
pub struct Communicator {
    library: Arc<NcclLibrary>,
    /// Null once it is given back, which NCCL answers with an error.
    raw: RawComm,
}

// SAFETY: NCCL's communicators belong to the process, and any of its threads may use them, one at a time.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Connects this thread's GPU; returns when all ranks have called it.
    ///
    /// # Errors
    /// The GPUs cannot be connected.
    pub fn connect(
        library: &Arc<NcclLibrary>,
        id: UniqueId,
        rank: usize,
        world_size: usize,
    ) -> Result<Self, GpuError> {
        let mut raw = ptr::null_mut();
        // SAFETY: one pointer is written; the id goes by value.
        let code = unsafe { (library.comm_init_rank)(&raw mut raw, world_size as c_int, id, rank as c_int) };
        library.check("ncclCommInitRank", code, ptr::null_mut())?;
        Ok(Self { library: Arc::clone(library), raw })
    }

    /// Queues the sum of `count` numbers over all ranks, in place.
    ///
    /// # Safety
    /// `data` are `count` numbers in the GPU's memory that nobody else touches before `stream` is through with this.
    pub(super) unsafe fn all_reduce(
        &self,
        data: *mut f32,
        count: usize,
        stream: RawStream,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.library.all_reduce)(data, data, count, FLOAT, SUM, self.raw, stream) };
        self.check("ncclAllReduce", code)
    }

    /// Queues the sum of every rank's part of `data`, `part` numbers each, over all ranks; `mine` is this rank's.
    ///
    /// # Safety
    /// As in [`all_reduce`](Self::all_reduce) for `part` x world size numbers, among which `mine` lies at this rank's place.
    pub(super) unsafe fn reduce_scatter(
        &self,
        data: *mut f32,
        mine: *mut f32,
        part: usize,
        stream: RawStream,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.library.reduce_scatter)(data, mine, part, FLOAT, SUM, self.raw, stream) };
        self.check("ncclReduceScatter", code)
    }

    /// Queues the gathering of every rank's part of `data`, `part` words of 32 bits each, whatever they mean; `mine` is this rank's.
    ///
    /// # Safety
    /// As in [`reduce_scatter`](Self::reduce_scatter).
    pub(super) unsafe fn all_gather(
        &self,
        mine: *mut f32,
        data: *mut f32,
        part: usize,
        stream: RawStream,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.library.all_gather)(mine, data, part, FLOAT, self.raw, stream) };
        self.check("ncclAllGather", code)
    }

    /// Whether something that was queued has failed since.
    pub(super) fn health(&self) -> Result<(), GpuError> {
        let mut state = SUCCESS;
        // SAFETY: one integer is written, and the communicator lives or is null.
        let code = unsafe { (self.library.comm_get_async_error)(self.raw, &raw mut state) };
        self.check("ncclCommGetAsyncError", code)?;
        if state == IN_PROGRESS { Ok(()) } else { self.check("a GPU collective", state) }
    }

    /// Ends whatever is queued without regard to other ranks; may block all the same.
    pub(super) fn abort(&mut self) {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        if !raw.is_null() {
            // SAFETY: the communicator lives, and is not used again. There is nobody to tell of errors.
            unsafe { (self.library.comm_abort)(raw) };
        }
    }

    /// Takes leave of the other ranks, for which it may wait.
    pub(super) fn disconnect(&mut self) {
        let raw = std::mem::replace(&mut self.raw, ptr::null_mut());
        if !raw.is_null() {
            // SAFETY: as in `abort`.
            unsafe { (self.library.comm_destroy)(raw) };
        }
    }

    fn check(&self, call: &'static str, code: Code) -> Result<(), GpuError> {
        self.library.check(call, code, self.raw)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.disconnect();
    }
}
