//! The processor's matrix unit itself: whether it is there, its registers, and the one product that it takes.
//!
//! A tile register holds 16 rows of 64 bytes. The names of the instructions and the layout of operands are those of Intel's
//! "Architecture Instruction Set Extensions Programming Reference", chapter 3 (AMX).

use std::arch::asm;
use std::sync::LazyLock;

/// Rows of a tile, and its columns of f32.
pub(super) const LANES: usize = 16;
/// Elements of bf16 in a row of a tile: how far one instruction gets along the inner dimension.
pub(super) const DEPTH: usize = 32;
/// Rows and columns of f32 that one call of [`Configured::add_product`] computes: two tiles each way.
pub(super) const STRIP: usize = 2 * LANES;

/// A row of a tile of bf16.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Row(pub(super) [u16; DEPTH]);

impl Row {
    pub(super) const ZERO: Self = Self([0; DEPTH]);
}

/// Rows of the two tiles that a strip has at every step of [`DEPTH`] along the inner dimension.
pub(super) const STEP_ROWS: usize = STRIP;

/// Proof that this thread's process may use the unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit(());

impl Unit {
    /// The unit, if processor and system let this process use it.
    pub(crate) fn get() -> Option<Self> {
        static USABLE: LazyLock<bool> = LazyLock::new(|| is_there() && is_permitted());
        USABLE.then_some(Self(()))
    }

    /// Runs `work` while this thread's registers are set up for it. Products of other libraries must not be taken in it.
    pub(super) fn configured(self, work: impl FnOnce(Configured)) {
        let layout = Layout::all_whole();
        // SAFETY: the unit is usable, and the layout is one that the processor knows.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(nostack, readonly)) };
        work(Configured(()));
        // SAFETY: the unit is usable.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Proof that the registers of this thread are set up.
#[derive(Clone, Copy)]
pub(super) struct Configured(());

/// 32 x 32 results in memory, whose rows lie `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) first: *mut f32,
    pub(super) stride: usize,
}

impl Block {
    pub(super) fn of(dense: &mut [f32; STRIP * STRIP]) -> Self {
        Self { first: dense.as_mut_ptr(), stride: STRIP }
    }

    /// The one that is most likely used next.
    pub(super) fn following(self) -> Self {
        let distance = if self.stride == STRIP { STRIP * STRIP } else { STRIP };
        Self { first: self.first.wrapping_add(distance), ..self }
    }
}

impl Configured {
    /// `to = from + left right`, without `from` the product alone. Strips are rows of tiles: [steps][tile][lane][DEPTH] of the left
    /// operand and [steps][tile][DEPTH / 2][lane][2] of the right one. `next` is what will be used soon.
    ///
    /// # Safety
    /// The memory of both blocks is valid, and nobody else uses it.
    #[inline(always)]
    pub(super) unsafe fn add_product(
        self,
        [left, right]: [&[Row]; 2],
        from: Option<Block>,
        to: Block,
        next: Block,
    ) {
        assert!(left.len() == right.len() && left.len().is_multiple_of(STEP_ROWS) && !left.is_empty());
        let steps = left.len() / STEP_ROWS;
        let [stride, next_stride] = [to, next].map(|block| block.stride * size_of::<f32>());
        // SAFETY: the registers are set up; both strips are read to their ends only, the blocks are the caller's promise. To ask
        // for a line ahead is harmless wherever it lies.
        unsafe {
            match from {
                None => asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                ),
                Some(Block { first, stride }) => asm!(
                    "tileloadd tmm0, [{upper} + {stride}*1]",
                    "tileloadd tmm1, [{upper} + {stride}*1 + 64]",
                    "tileloadd tmm2, [{lower} + {stride}*1]",
                    "tileloadd tmm3, [{lower} + {stride}*1 + 64]",
                    upper = in(reg) first,
                    lower = in(reg) first.wrapping_add(LANES * stride),
                    stride = in(reg) stride * size_of::<f32>(),
                    options(nostack, readonly)
                ),
            }
            asm!(
                "2:",
                "prefetchw [{next}]",
                "prefetchw [{next} + 64]",
                "prefetchw [{next} + {next_stride}*1]",
                "prefetchw [{next} + {next_stride}*1 + 64]",
                "lea {next}, [{next} + {next_stride}*2]",
                "prefetchw [{next}]",
                "prefetchw [{next} + 64]",
                "prefetchw [{next} + {next_stride}*1]",
                "prefetchw [{next} + {next_stride}*1 + 64]",
                "lea {next}, [{next} + {next_stride}*2]",
                "tileloadd tmm4, [{left} + {row}*1]",
                "tileloadd tmm6, [{right} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {row}*1 + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {row}*1 + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 2048",
                "add {right}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{upper} + {stride}*1], tmm0",
                "tilestored [{upper} + {stride}*1 + 64], tmm1",
                "tilestored [{lower} + {stride}*1], tmm2",
                "tilestored [{lower} + {stride}*1 + 64], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                steps = inout(reg) steps => _,
                row = in(reg) size_of::<Row>(),
                next = inout(reg) next.first => _,
                next_stride = in(reg) next_stride,
                upper = in(reg) to.first,
                lower = in(reg) to.first.wrapping_add(LANES * to.stride),
                stride = in(reg) stride,
                options(nostack)
            );
        }
    }
}

/// What `ldtilecfg` reads: palette 1, and bytes of a row and rows of every register.
#[repr(C, align(64))]
struct Layout {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Layout {
    const fn all_whole() -> Self {
        let mut layout =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut register = 0;
        while register < 8 {
            layout.row_bytes[register] = size_of::<Row>() as u16;
            layout.rows[register] = LANES as u8;
            register += 1;
        }
        layout
    }
}

/// Whether the processor has tiles and their products of bf16, and the vectors that operands are laid out with.
fn is_there() -> bool {
    const LEAF: u32 = 7;
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    let has_vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    has_vectors
        && std::arch::x86_64::__cpuid(0).eax >= LEAF
        && std::arch::x86_64::__cpuid_count(LEAF, 0).edx & BF16_AND_TILES == BF16_AND_TILES
}

/// Asks the system for the unit's registers, which it keeps from processes that do not ask, as they make every switch dearer.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: a request without memory behind it, which older systems refuse.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}
