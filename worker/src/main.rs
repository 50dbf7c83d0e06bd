//! Wiring.
fn main() {
    let t = tch::Tensor::randn([1024, 1024], (tch::Kind::BFloat16, tch::Device::Cpu));
    let s = std::time::Instant::now();
    for _ in 0..20 { let _ = t.matmul(&t); }
    println!("{:?}", s.elapsed() / 20);
}
