//! Which device a rank computes on: one of its host's GPUs, or the processor. All ranks decide alike, from what each has found.

use std::sync::Arc;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::comm::{
    Collectives, CommError, CudaRuntime, Exchange, FlatMemory, Gpu, GpuError, NcclExchange, NcclLibrary,
};
use crate::config::{DeviceChoice, TrainerConfig};
use crate::{host, memory, telemetry};

/// Ranks and GPUs do not fit each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// GPUs were asked for, and there is none.
    #[error(
        "trainer.device = \"cuda\", but rank {rank} on host {host} has no GPU that it can use ({reason}); set \
         trainer.device=cpu to compute without"
    )]
    NoGpu {
        /// The first such rank.
        rank: usize,
        /// Its host.
        host: String,
        /// Why not.
        reason: String,
    },
    /// Some ranks found a GPU, others did not.
    #[error(
        "rank {with} on host {host_with} can use a GPU, but rank {without} on host {host_without} cannot ({reason}); \
         repair that, or set trainer.device=cpu"
    )]
    Mixed {
        /// The first rank that found one.
        with: usize,
        /// Its host.
        host_with: String,
        /// The first rank that found none.
        without: usize,
        /// Its host.
        host_without: String,
        /// Why it found none.
        reason: String,
    },
    /// A host has more ranks than GPUs.
    #[error(
        "{ranks} ranks were started on host {host}, where they see {gpus} GPU(s): start one rank for each GPU, or set \
         trainer.device=cpu"
    )]
    TooFewGpus {
        /// The host.
        host: String,
        /// Ranks there.
        ranks: usize,
        /// Different GPUs that they see.
        gpus: usize,
    },
    /// The ranks' GPUs cannot speak to each other.
    #[error(
        "{world_size} ranks with GPUs exchange gradients by NCCL, but on rank {rank} {reason}; run scripts/setup.sh --gpu, or \
         name the file in ILM_NCCL_LIBRARY"
    )]
    NoNccl {
        /// This rank.
        rank: usize,
        /// All ranks.
        world_size: usize,
        /// What is wrong with the library.
        reason: String,
    },
}

/// Where this rank computes.
pub struct RankDevice {
    gpu: Option<ChosenGpu>,
}

/// Bytes that a rank may take, and of which memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Available {
    /// The host's.
    OnHost(u64),
    /// Its GPU's.
    OnGpu(u64),
}

/// The GPU of this rank.
struct ChosenGpu {
    cuda: Arc<CudaRuntime>,
    index: usize,
    name: String,
}

impl RankDevice {
    /// The processor, whatever GPUs there are.
    pub fn processor() -> Self {
        Self { gpu: None }
    }

    /// Takes this rank's share of what the settings ask for; all ranks call it together, before libtorch computes anything.
    ///
    /// # Errors
    /// [`DeviceError`], alike on all ranks, or a failing collective.
    pub fn select(comm: &mut dyn Collectives, trainer: &TrainerConfig) -> anyhow::Result<Self> {
        let choice = trainer.device;
        if choice == DeviceChoice::Cpu {
            return Ok(Self::processor());
        }
        let found = Found::here();
        let encoded = serde_json::to_vec(&found.census)?;
        let all = comm.all_gather("devices", &encoded)?;
        let all: Vec<Census> = all.iter().map(|one| serde_json::from_slice(one)).collect::<Result<_, _>>()?;
        if comm.rank() == 0 {
            unused(&all, choice).iter().for_each(|warning| telemetry::warn(warning));
        }
        let (Some(places), Some(cuda)) = (decide(choice, &all)?, found.cuda) else {
            return Ok(Self::processor());
        };
        let index = places[comm.rank()];
        cuda.set_device(index)?;
        if trainer.deterministic && !ilm_model::use_repeatable_kernels() && comm.rank() == 0 {
            telemetry::warn(
                "this libtorch cannot be told to repeat its bits on GPUs (trainer.deterministic)",
            );
        }
        let name = found.gpus.get(index).map(|gpu| gpu.name.clone()).unwrap_or_default();
        Ok(Self { gpu: Some(ChosenGpu { cuda, index, name }) })
    }

    /// As libtorch names it.
    pub fn device(&self) -> Device {
        self.gpu.as_ref().map_or(Device::Cpu, |gpu| Device::Cuda(gpu.index))
    }

    /// Memory that this rank may take where it computes, alike on all ranks; to be called before they take much of it.
    ///
    /// # Errors
    /// A failing collective, or CUDA does not answer.
    pub fn available(&self, comm: &mut dyn Collectives) -> Result<Available, CommError> {
        match &self.gpu {
            Some(gpu) => Ok(Available::OnGpu(memory::free_on_gpus(comm, &gpu.cuda)?)),
            None => Ok(Available::OnHost(memory::available_per_rank(comm)?)),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        let Some(gpu) = &self.gpu else { return "processor".to_owned() };
        const GIB: f64 = (1u64 << 30) as f64;
        let memory = gpu
            .cuda
            .memory()
            .map(|(free, all)| format!(", {:.1} of {:.1} GiB free", free as f64 / GIB, all as f64 / GIB));
        format!("{}{}", gpu.name, memory.unwrap_or_default())
    }

    /// Opens the exchange of flat buffers that are on this device.
    ///
    /// # Safety
    /// As of [`Collectives::exchange`] and [`NcclExchange::connect`].
    ///
    /// # Errors
    /// [`DeviceError::NoNccl`], or the GPUs cannot be connected.
    pub unsafe fn exchange(
        &self,
        comm: &mut dyn Collectives,
        memory: FlatMemory,
        timeout: Duration,
    ) -> anyhow::Result<Box<dyn Exchange>> {
        let (rank, world_size) = (comm.rank(), comm.world_size());
        let Some(gpu) = self.gpu.as_ref().filter(|_| world_size > 1) else {
            // SAFETY: the caller's promise. A single rank exchanges nothing, wherever its buffers are.
            return Ok(unsafe { comm.exchange(memory)? });
        };
        let missing = |error: GpuError| DeviceError::NoNccl { rank, world_size, reason: error.to_string() };
        let nccl = NcclLibrary::open().map_err(missing)?;
        // SAFETY: the caller's promise.
        let exchange = unsafe { NcclExchange::connect(comm, &gpu.cuda, &nccl, memory, timeout)? };
        Ok(Box::new(exchange))
    }
}

/// What a rank tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Census {
    host: String,
    /// UUIDs of the GPUs that it sees, in its order.
    gpus: Vec<[u8; 16]>,
    /// Why it can use none of them.
    problem: Option<String>,
}

impl Census {
    fn usable(&self) -> bool {
        self.problem.is_none()
    }
}

/// What there is on this rank.
struct Found {
    census: Census,
    cuda: Option<Arc<CudaRuntime>>,
    gpus: Vec<Gpu>,
}

impl Found {
    fn here() -> Self {
        let host = host::name();
        let seen = CudaRuntime::open().and_then(|cuda| Ok((cuda.gpus()?, cuda)));
        match seen {
            Err(error) => {
                let census = Census { host, gpus: Vec::new(), problem: Some(error.to_string()) };
                Self { census, cuda: None, gpus: Vec::new() }
            }
            Ok((gpus, cuda)) => {
                let uuids = gpus.iter().map(|gpu| gpu.uuid).collect();
                let census = Census { host, gpus: uuids, problem: give_libtorch_cuda().err() };
                Self { census, cuda: Some(cuda), gpus }
            }
        }
    }
}

/// Loads libtorch's part for GPUs, which programs do not link so that they run without it; why it does not work.
fn give_libtorch_cuda() -> Result<(), String> {
    // SAFETY: its initialisers register kernels with the libtorch that is in the process already.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        let reason = crate::comm::reason(&error);
        format!("libtorch's part for GPUs does not load: {reason}; scripts/setup.sh --gpu installs all of it")
    })?;
    // Never unloaded: libtorch keeps pointers into it.
    let _ = library.into_raw();
    if tch::Cuda::is_available() { Ok(()) } else { Err("libtorch cannot use it".to_owned()) }
}

/// Warnings of GPUs that are there and not used, though nobody asked for that.
fn unused(all: &[Census], choice: DeviceChoice) -> Option<String> {
    let idle =
        all.iter().find(|one| choice == DeviceChoice::Auto && !one.gpus.is_empty() && !one.usable())?;
    let reason = idle.problem.as_deref().unwrap_or_default();
    Some(format!("the GPUs of host {} are not used: {reason}", idle.host))
}

/// The number of every rank's GPU among those that it sees; none if all compute on processors.
fn decide(choice: DeviceChoice, all: &[Census]) -> Result<Option<Vec<usize>>, DeviceError> {
    let with = all.iter().position(Census::usable);
    let without = all.iter().position(|one| !one.usable());
    let reason = |rank: usize| all[rank].problem.clone().unwrap_or_default();
    let host = |rank: usize| all[rank].host.clone();
    match (with, without) {
        (Some(with), Some(without)) => Err(DeviceError::Mixed {
            with,
            host_with: host(with),
            without,
            host_without: host(without),
            reason: reason(without),
        }),
        (None, Some(rank)) if choice == DeviceChoice::Cuda => {
            Err(DeviceError::NoGpu { rank, host: host(rank), reason: reason(rank) })
        }
        (None, _) => Ok(None),
        (Some(_), None) => share_out(all).map(Some),
    }
}

/// Every rank takes the first GPU it sees that no lower rank has taken. A launcher may show all ranks of a host the same GPUs, or
/// each rank its own: UUIDs tell which.
fn share_out(all: &[Census]) -> Result<Vec<usize>, DeviceError> {
    let mut taken: Vec<[u8; 16]> = Vec::new();
    let take = |one: &Census| {
        let place =
            one.gpus.iter().position(|gpu| !taken.contains(gpu)).ok_or_else(|| too_few(all, &one.host))?;
        taken.push(one.gpus[place]);
        Ok(place)
    };
    all.iter().map(take).collect()
}

fn too_few(all: &[Census], host: &str) -> DeviceError {
    let here = || all.iter().filter(|one| one.host == host);
    let mut gpus: Vec<_> = here().flat_map(|one| &one.gpus).collect();
    gpus.sort();
    gpus.dedup();
    DeviceError::TooFewGpus { host: host.to_owned(), ranks: here().count(), gpus: gpus.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(host: &str, gpus: &[u8]) -> Census {
        Census { host: host.into(), gpus: gpus.iter().map(|&id| [id; 16]).collect(), problem: None }
    }

    fn without(host: &str) -> Census {
        Census { host: host.into(), gpus: Vec::new(), problem: Some("no driver".into()) }
    }

    #[test]
    fn ranks_of_a_host_take_different_gpus_and_hosts_do_not_matter_to_each_other() {
        let all = [with("a", &[1, 2]), with("b", &[3, 4]), with("a", &[1, 2]), with("b", &[3, 4])];
        assert_eq!(decide(DeviceChoice::Auto, &all), Ok(Some(vec![0, 0, 1, 1])));
    }

    #[test]
    fn a_rank_that_is_shown_one_gpu_only_takes_it() {
        let all = [with("a", &[1]), with("a", &[2])];
        assert_eq!(decide(DeviceChoice::Cuda, &all), Ok(Some(vec![0, 0])));
    }

    #[test]
    fn more_ranks_than_gpus_are_refused_with_the_numbers() {
        let all = [with("a", &[1]), with("b", &[2, 3]), with("b", &[2, 3]), with("b", &[2, 3])];
        let error = decide(DeviceChoice::Auto, &all).unwrap_err();
        assert_eq!(error, DeviceError::TooFewGpus { host: "b".into(), ranks: 3, gpus: 2 });
    }

    #[test]
    fn without_gpus_auto_computes_on_processors_and_cuda_says_why_not() {
        let all = [without("a"), without("a")];
        assert_eq!(decide(DeviceChoice::Auto, &all), Ok(None));
        let error = decide(DeviceChoice::Cuda, &all).unwrap_err();
        assert_eq!(error, DeviceError::NoGpu { rank: 0, host: "a".into(), reason: "no driver".into() });
    }

    #[test]
    fn ranks_do_not_mix_devices() {
        let all = [with("a", &[1]), without("b")];
        for choice in [DeviceChoice::Auto, DeviceChoice::Cuda] {
            let sentence = decide(choice, &all).unwrap_err().to_string();
            assert!(
                sentence.contains("rank 0 on host a can use a GPU, but rank 1 on host b cannot (no driver)")
            );
        }
    }

    #[test]
    fn gpus_that_libtorch_cannot_use_are_spoken_of_unless_nobody_wants_them() {
        let idle = Census { problem: Some("only half of libtorch".into()), ..with("a", &[1]) };
        let warning = unused(std::slice::from_ref(&idle), DeviceChoice::Auto);
        assert_eq!(warning.unwrap(), "the GPUs of host a are not used: only half of libtorch");
        assert_eq!(unused(&[idle], DeviceChoice::Cuda), None);
        assert_eq!(unused(&[without("a")], DeviceChoice::Auto), None);
    }
}
