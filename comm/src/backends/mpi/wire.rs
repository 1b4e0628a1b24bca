//! [`Wire`]: the MPI calls that there are, each with its return code checked. None of them blocks.
#![allow(unsafe_code)]

use mpi::ffi;
use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

/// A call of MPI that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// The MPI function.
    pub(super) call: &'static str,
    /// What MPI says.
    pub(super) message: String,
}

type Result<T> = std::result::Result<T, Failure>;

/// Two communicators of all processes, for nobody else: one carries [`Parcel`]s, one bulk data.
///
/// Whoever has it makes all MPI calls of this process, so `MPI_THREAD_SERIALIZED` suffices.
pub(super) struct Wire {
    pub(super) rank: usize,
    pub(super) size: usize,
    /// Bulk tags are below this.
    pub(super) tags: u32,
    parcels: ffi::MPI_Comm,
    bulk: ffi::MPI_Comm,
}

// SAFETY: handles of MPI objects belong to the process, not to a thread; with
// `MPI_THREAD_SERIALIZED` any thread may use them, one at a time, which `&mut` and the engine's lock
// ensure.
unsafe impl Send for Wire {}

/// Something on its way.
#[derive(Debug)]
pub(super) struct Request(ffi::MPI_Request);

// SAFETY: as for `Wire`; a request is only ever tested through the wire.
unsafe impl Send for Request {}

/// A small message that is being sent; it owns its bytes.
pub(super) struct Outgoing {
    bytes: Option<Arc<[u8]>>,
    request: Request,
    has_left: bool,
}

impl Drop for Outgoing {
    /// MPI may still read the bytes of a message that was given up: they stay.
    fn drop(&mut self) {
        if !self.has_left {
            std::mem::forget(self.bytes.take());
        }
    }
}

/// A small message that is being received.
pub(super) struct Incoming {
    pub(super) source: usize,
    pub(super) bytes: Box<[u8]>,
    request: Request,
}

const TAG: c_int = 0;

impl Wire {
    /// Takes over MPI, which has been initialised. Collective: all processes call it.
    pub(super) fn new() -> Result<Wire> {
        let mut wire = Wire {
            rank: 0,
            size: 0,
            tags: 0,
            // SAFETY: a constant of the MPI library.
            parcels: unsafe { ffi::RSMPI_COMM_WORLD },
            // SAFETY: as above.
            bulk: unsafe { ffi::RSMPI_COMM_WORLD },
        };
        let world = wire.bulk;
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI is initialised, and every pointer is to a live local of the type that MPI
        // writes. The value of `MPI_TAG_UB` is a pointer to an `int` that MPI owns.
        unsafe {
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(world, &mut rank))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(world, &mut size))?;
            for comm in [&mut wire.parcels, &mut wire.bulk] {
                check("MPI_Comm_dup", ffi::MPI_Comm_dup(world, comm))?;
                let code = ffi::MPI_Comm_set_errhandler(*comm, ffi::RSMPI_ERRORS_RETURN);
                check("MPI_Comm_set_errhandler", code)?;
            }
            let (mut bound, mut there) = (ptr::null::<c_int>(), 0);
            let key = ffi::MPI_TAG_UB as c_int;
            let value = (&raw mut bound).cast::<c_void>();
            let code = ffi::MPI_Comm_get_attr(world, key, value, &mut there);
            check("MPI_Comm_get_attr", code)?;
            // The standard promises 32767.
            let bound = match there != 0 && !bound.is_null() {
                true => *bound,
                false => 32767,
            };
            wire.tags = bound.unsigned_abs();
        }
        wire.rank = rank.unsigned_abs() as usize;
        wire.size = size.unsigned_abs() as usize;
        Ok(wire)
    }

    /// Starts sending a parcel.
    pub(super) fn send_parcel(&mut self, bytes: Arc<[u8]>, to: usize) -> Result<Outgoing> {
        // SAFETY: the bytes live until the request has completed (see the `Drop` of `Outgoing`), and
        // nobody writes to them.
        let request = unsafe {
            self.send(
                self.parcels,
                bytes.as_ptr(),
                bytes.len(),
                to,
                TAG,
                "MPI_Isend",
            )
        }?;
        Ok(Outgoing {
            bytes: Some(bytes),
            request,
            has_left: false,
        })
    }

    /// Whether a parcel has left.
    pub(super) fn has_left(&mut self, parcel: &mut Outgoing) -> Result<bool> {
        parcel.has_left = self.test(&mut parcel.request)?;
        Ok(parcel.has_left)
    }

    /// The next parcel that has reached this process, from anybody. Those of one sender come in
    /// the order in which it has sent them.
    pub(super) fn next_parcel(&mut self) -> Result<Option<Incoming>> {
        let (mut there, mut bytes) = (0, 0);
        let mut message = MaybeUninit::uninit();
        let mut status = MaybeUninit::uninit();
        // SAFETY: the pointers are to live locals of the types that MPI writes; message and status
        // are read only if MPI says that it has written them. The buffer is as long as the message,
        // and stays where it is, on the heap, until the request has completed: see `Incoming` in
        // `Engine`.
        unsafe {
            let any = ffi::RSMPI_ANY_SOURCE;
            let (m, s) = (message.as_mut_ptr(), status.as_mut_ptr());
            let code = ffi::MPI_Improbe(any, TAG, self.parcels, &mut there, m, s);
            check("MPI_Improbe", code)?;
            if there == 0 {
                return Ok(None);
            }
            let byte = ffi::RSMPI_UINT8_T;
            let code = ffi::MPI_Get_count(status.as_ptr(), byte, &mut bytes);
            check("MPI_Get_count", code)?;
            let mut incoming = Incoming {
                source: status.assume_init().MPI_SOURCE.unsigned_abs() as usize,
                bytes: vec![0; bytes.unsigned_abs() as usize].into(),
                request: Request(ffi::RSMPI_REQUEST_NULL),
            };
            let to = incoming.bytes.as_mut_ptr().cast::<c_void>();
            let code = ffi::MPI_Imrecv(to, bytes, byte, m, &mut incoming.request.0);
            check("MPI_Imrecv", code)?;
            Ok(Some(incoming))
        }
    }

    /// Whether a parcel is there whole.
    pub(super) fn has_come(&mut self, parcel: &mut Incoming) -> Result<bool> {
        self.test(&mut parcel.request)
    }

    /// Starts sending bulk data of less than 2³¹ bytes.
    ///
    /// # Safety
    /// The bytes are valid, and nobody writes to them, until the request has completed.
    pub(super) unsafe fn send_bulk(
        &mut self,
        from: *const u8,
        bytes: usize,
        to: usize,
        tag: u32,
    ) -> Result<Request> {
        let tag = tag as c_int;
        // SAFETY: handed on from the caller.
        unsafe { self.send(self.bulk, from, bytes, to, tag, "MPI_Isend") }
    }

    /// Starts receiving bulk data of less than 2³¹ bytes. Data of one sender and tag is matched in
    /// order.
    ///
    /// # Safety
    /// The bytes are valid, and nobody else reads or writes them, until the request has completed.
    pub(super) unsafe fn recv_bulk(
        &mut self,
        to: *mut u8,
        bytes: usize,
        from: usize,
        tag: u32,
    ) -> Result<Request> {
        // SAFETY: a constant of the library; the rest is handed on from the caller.
        unsafe {
            let mut request = Request(ffi::RSMPI_REQUEST_NULL);
            let code = ffi::MPI_Irecv(
                to.cast(),
                count(bytes),
                ffi::RSMPI_UINT8_T,
                from as c_int,
                tag as c_int,
                self.bulk,
                &mut request.0,
            );
            check("MPI_Irecv", code)?;
            Ok(request)
        }
    }

    /// # Safety
    /// As for [`send_bulk`](Wire::send_bulk).
    unsafe fn send(
        &self,
        comm: ffi::MPI_Comm,
        from: *const u8,
        bytes: usize,
        to: usize,
        tag: c_int,
        call: &'static str,
    ) -> Result<Request> {
        // SAFETY: a constant of the library; the rest is handed on from the caller.
        unsafe {
            let mut request = Request(ffi::RSMPI_REQUEST_NULL);
            let byte = ffi::RSMPI_UINT8_T;
            let (from, to) = (from.cast::<c_void>(), to as c_int);
            let code = ffi::MPI_Isend(from, count(bytes), byte, to, tag, comm, &mut request.0);
            check(call, code)?;
            Ok(request)
        }
    }

    /// Whether a request has completed. A completed one may be asked again.
    pub(super) fn test(&mut self, request: &mut Request) -> Result<bool> {
        let mut done = 0;
        // SAFETY: the request came from MPI; a completed one is set to the null request, of which
        // MPI says that it has completed.
        let code = unsafe { ffi::MPI_Test(&mut request.0, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        check("MPI_Test", code)?;
        Ok(done != 0)
    }

    /// Ends MPI. All processes are about to call it.
    pub(super) fn finalize(&mut self) -> Result<()> {
        // SAFETY: MPI is initialised, and the caller holds the lock that all MPI calls need.
        check("MPI_Finalize", unsafe { ffi::MPI_Finalize() })
    }
}

/// Ends all processes of the job, this one included.
pub(super) fn abort(code: c_int) -> ! {
    // SAFETY: a last call. Another thread may be inside MPI; but nothing follows.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    std::process::abort()
}

/// Bytes as MPI counts them. The callers send no more than a chunk, or a header.
fn count(bytes: usize) -> c_int {
    debug_assert!(c_int::try_from(bytes).is_ok());
    bytes as c_int
}

fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0 as c_char; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut len = 0;
    // SAFETY: the array is as long as MPI's longest message; MPI writes its length.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut len) };
    let message = match known == ffi::MPI_SUCCESS as c_int {
        true => text[..len.unsigned_abs() as usize]
            .iter()
            .map(|&c| char::from(c as u8))
            .collect(),
        false => format!("error {code}"),
    };
    Err(Failure { call, message })
}
