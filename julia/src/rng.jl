# Random numbers that are the same on every Julia version and platform (the standard library's streams are not).

"""
    SplitMix(seed)

SplitMix64 (Steele, Lea and Flood 2014): a 64-bit counter behind a mixing function. `SplitMix(seed, stream...)` gives an
independent stream for each combination of integers.
"""
mutable struct SplitMix
    state::UInt64
end

const GOLDEN_GAMMA = 0x9e3779b97f4a7c15

@inline function mix64(z::UInt64)
    z = (z ⊻ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ⊻ (z >> 27)) * 0x94d049bb133111eb
    return z ⊻ (z >> 31)
end

function SplitMix(seed::Integer, streams::Integer...)
    state = mix64(seed % UInt64 + GOLDEN_GAMMA)
    for stream in streams
        state = mix64(state ⊻ (stream % UInt64 * GOLDEN_GAMMA + 0xd1342543de82ef95))
    end
    return SplitMix(state)
end

@inline function next64!(rng::SplitMix)
    rng.state += GOLDEN_GAMMA
    return mix64(rng.state)
end

"Uniform Float64 in [0, 1), a multiple of 2^-53."
@inline uniform!(rng::SplitMix) = (next64!(rng) >> 11) * 2.0^-53

"Standard normal (Box and Muller 1958)."
normal!(rng::SplitMix) = sqrt(-2 * log1p(-uniform!(rng))) * cospi(2 * uniform!(rng))

"Uniform integer in 1:n (the bias, below n / 2^64, is out of reach of any data set)."
@inline below!(rng::SplitMix, n::Integer) = Int((widen(next64!(rng)) * n) >> 64) + 1

"Fisher-Yates shuffle of `v` in place."
function shuffle!(rng::SplitMix, v::AbstractVector)
    for i in length(v):-1:2
        j = below!(rng, i)
        v[i], v[j] = v[j], v[i]
    end
    return v
end
