# What flows start from, and what they add up to.

"""
Statistics of one thread: `weight` (edge flows divided by the edge's weight) and `leaf` (flows of the categories), in the
layout of the circuit's parameters. `leaf` is empty where `BatchInputs` take its place.
"""
struct Statistics
    weight::Vector{Float32}
    leaf::Vector{Float32}
end

Statistics(c::Circuit; leaf::Bool=true) =
    Statistics(zeros(Float32, length(c.weight)), zeros(Float32, leaf ? length(c.leaf) : 0))

# Single-precision sums over more samples than this would lose digits that EM on the whole data set needs.
const SINGLE_PRECISION_SAMPLES = 2^13

"""
What the flow of each sample starts from: its head (from 1), and its weight, which multiplies all its flows.
"""
struct Sources
    head_of::Vector{Int32}
    weight_of::Vector{Float32}
end

function Sources(c::Circuit, head_of, weights, N::Int)
    length(head_of) == N || throw(ArgumentError("heads has $(length(head_of)) entries for $N samples"))
    all(h -> 1 <= h <= num_heads(c), head_of) ||
        throw(ArgumentError("heads: found $(extrema(head_of) .- 1), the circuit has heads 0..$(num_heads(c) - 1)"))
    length(weights) == N || throw(ArgumentError("weights has $(length(weights)) entries for $N samples"))
    all(w -> 0 <= w < Inf, weights) || throw(ArgumentError("weights: found $(extrema(weights)), wanted finite numbers >= 0"))
    sum(weights) > 0 || throw(ArgumentError("weights: all are 0"))
    return Sources(Vector{Int32}(head_of), Vector{Float32}(weights))
end

"""
What the flows of each sample start from, where they start from several heads at once: `weight`, Float32 `(heads, samples)`.
"""
struct Responsibilities
    weight::Matrix{Float32}
end

"(head, weight) of the heads from which sample `n` has flow."
@inline starts(sources::Sources, n::Int) = ((Int(sources.head_of[n]), sources.weight_of[n]),)
starts(sources::Responsibilities, n::Int) =
    ((head, sources.weight[head, n]) for head in axes(sources.weight, 1) if sources.weight[head, n] > 0)

const Starts = Union{Sources,Responsibilities}

"""
    ExpectedCounts(circuit)

The statistics of EM, additive over samples: `weight`, the flow of each edge of a sum, and `leaf`, the flow of each category of
each input, Float64, in the layout of the circuit's parameters. Those of two parts of a data set add up to the whole's.
"""
struct ExpectedCounts
    weight::Vector{Float64}
    leaf::Vector{Float64}
end

ExpectedCounts(c::Circuit) = ExpectedCounts(zeros(length(c.weight)), zeros(length(c.leaf)))

function clear!(counts::ExpectedCounts)
    fill!(counts.weight, 0.0)
    fill!(counts.leaf, 0.0)
end
