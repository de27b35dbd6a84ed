//! Dropout where no kernel of ours draws it: by libtorch's generator, which begins at the seed of the place each time. So a backward
//! pass draws the mask of the forward pass again, and nothing random is state.

use tch::{Cuda, Device, Kind, Tensor};

use crate::dropout::Dropout;
use crate::error::Result;
use crate::kernels;

/// Dropout of `x` [N, d], on the host f32. It is its own gradient: the size decides what is dropped, not the values.
pub(crate) fn drop(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if dropout.is_off() {
        return Ok(x.shallow_clone());
    }
    if kernels::can_take(x) {
        return kernels::residual::add_backward(x, dropout, None, Kind::Float);
    }
    by_torch(x, dropout)
}

/// Starts libtorch's generator for what the next operation drops.
pub(super) fn begin(dropout: Dropout, device: Device) {
    // libtorch has one generator for each device, and one thread of a process computes with it.
    if device.is_cuda() {
        Cuda::manual_seed_all(dropout.seed());
    } else {
        tch::manual_seed(dropout.seed().cast_signed());
    }
}

/// The mask is drawn into memory of its own, so that neither layout nor type of the values changes it.
fn by_torch(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    begin(dropout, x.device());
    let kept = 1.0 - dropout.p();
    let mask = Tensor::f_empty(x.size(), (Kind::Bool, x.device()))?.f_bernoulli_float_(kept)?;
    Ok(Tensor::f_native_dropout_backward(x, &mask, kept.recip())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::wave;

    fn ones(dropout: Dropout) -> Vec<f32> {
        let dropped = by_torch(&Tensor::ones([100, 2001], (Kind::Float, Device::Cpu)), dropout);
        dropped.unwrap().view([-1]).try_into().unwrap()
    }

    #[test]
    fn share_and_scale_of_kept_elements_follow_p() {
        let values = ones(Dropout::new(0.1, 7));
        let dropped = values.iter().filter(|&&value| value == 0.0).count() as f64 / values.len() as f64;
        assert!((dropped - 0.1).abs() < 0.004, "{dropped}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.9).abs() < 1e-6));
    }

    #[test]
    fn masks_repeat_by_seed_and_place_whatever_was_drawn_before() {
        let base = ones(Dropout::new(0.5, 7).site(1));
        let other = ones(Dropout::new(0.5, 7).site(2));
        assert_eq!(base, ones(Dropout::new(0.5, 7).site(1)));
        let agree = other.iter().zip(&base).filter(|(a, b)| a == b).count() as f64 / base.len() as f64;
        assert!((agree - 0.5).abs() < 0.01, "{agree}");
    }

    #[test]
    fn layout_and_values_do_not_change_the_mask() {
        let dropout = Dropout::new(0.4, 3);
        let dropped = |x: &Tensor| by_torch(x, dropout).unwrap().eq(0.0);
        let mask = dropped(&wave(&[30, 17], 0.3));
        assert_eq!(dropped(&wave(&[17, 30], 0.7).tr()), mask);
        assert_eq!(dropped(&wave(&[30, 20], 0.1).narrow(1, 2, 17)), mask);
    }

    #[test]
    fn switched_off_it_changes_nothing() {
        let x = wave(&[3, 5], 0.2);
        assert_eq!(drop(&x, Dropout::OFF).unwrap(), x);
    }
}
