# Hidden Chow-Liu trees (Liu and Van den Broeck 2021): a Chow-Liu tree over latents, one latent for each variable.

"""
    ObservedStates(X, states, head_of)

Guesses of what is hidden: `states`, integers `(variables, samples)`, the state of each variable, from 0; `head_of`, the head of
each sample, from 1. With the values `X` they say what an HCLT starts from.
"""
struct ObservedStates{A<:AbstractMatrix{<:Integer},B<:AbstractMatrix{<:Integer}}
    X::A
    states::B
    head_of::Vector{Int32}
end

# A unit's parameters start as its counts and so many more samples, which are the same for all units but for a perturbation.
const ADDED_SAMPLES = 5.0

"""
    hclt(parent; latents, categories, heads = 1, perturbation = 0.4, seed = 0, observed = nothing) -> Circuit

The HCLT over the tree `parent` (see [`chow_liu_tree`](@ref)). Variable i has `latents` hidden states, each with a
categorical input; the root variable's states are mixed by `heads` sums. Every parameter starts in proportion to
U(1 - perturbation, 1 + perturbation), or, where hidden states were `observed` (see [`ObservedStates`](@ref)), at what they say:
latent variable distillation (Liu, Zhang and Van den Broeck 2023) for the latents within the circuit.
"""
function hclt(parent::AbstractVector{<:Integer}; latents::Integer, categories::Integer, heads::Integer=1,
              perturbation::Real=0.4, seed::Integer=0, observed::Union{Nothing,ObservedStates}=nothing)
    latents >= 1 || throw(ArgumentError("num_latents = $latents: want at least 1"))
    categories >= 1 || throw(ArgumentError("num_cats = $categories: want at least 1"))
    heads >= 1 || throw(ArgumentError("heads = $heads: want at least 1"))
    0 <= perturbation < 1 || throw(ArgumentError("perturbation = $perturbation: want a number in [0, 1)"))
    V = length(parent)
    rng = SplitMix(seed)

    subtrees = [Int[] for _ in 1:V]
    for i in 1:V
        parent[i] != 0 && push!(subtrees[parent[i]], i)
    end
    root = findfirst(iszero, parent)
    order = breadth_first(subtrees, root)
    b = Builder(V)
    messages = Vector{UnitRange{Int}}(undef, V)  # of variable i: the sums over its states, one for each parent state
    for i in reverse(order)
        counts = value_counts(observed, i, latents, categories)
        table, common = Matrix{Float32}(undef, latents, categories), shared_by_all(counts)
        for k in 1:latents
            table[k, :] = started(rng, view(counts, :, k), common, perturbation)
        end
        states = add_inputs!(b, i, table)
        if !isempty(subtrees[i])
            for k in 1:latents
                factors = [states[k]]
                for j in subtrees[i]
                    push!(factors, messages[j][k])
                end
                add_product!(b, factors)
            end
            states = last_units(b, latents)
        end
        counts = i == root ? head_counts(observed, i, latents, heads) : transition_counts(observed, i, parent[i], latents)
        common = shared_by_all(counts)
        for k in axes(counts, 2)
            add_sum!(b, states, started(rng, view(counts, :, k), common, perturbation))
        end
        messages[i] = last_units(b, size(counts, 2))
    end
    return Circuit(b, messages[root])
end

# How often each value came with each state of variable i, each of its states with each of its parent's, and with each head.

value_counts(::Nothing, i, K, C) = zeros(C, K)
value_counts(o::ObservedStates, i, K, C) = pair_counts(view(o.X, i, :), view(o.states, i, :), C, K)

transition_counts(::Nothing, i, parent, K) = zeros(K, K)
transition_counts(o::ObservedStates, i, parent, K) = pair_counts(view(o.states, i, :), view(o.states, parent, :), K, K)

head_counts(::Nothing, i, K, heads) = zeros(K, heads)
head_counts(o::ObservedStates, i, K, heads) = pair_counts(view(o.states, i, :), o.head_of .- 1, K, heads)

function pair_counts(x, y, rows, columns)
    counts = zeros(rows, columns)
    for n in eachindex(x)
        counts[x[n] + 1, y[n] + 1] += 1
    end
    return counts
end

"What all columns of counts have in common: all equal, where nothing was counted."
shared_by_all(counts) = vec(sum(counts, dims=2)) .+ 1

"The shares of `counts`, with `ADDED_SAMPLES` that are spread like `common`, but perturbed."
function started(rng::SplitMix, counts, common, perturbation::Real)
    shares, counted = perturbed(rng, common, perturbation), sum(counts)
    return counted == 0 ? shares : Float32.((counts .+ ADDED_SAMPLES .* shares) ./ (counted + ADDED_SAMPLES))
end

"`n` probabilities in proportion to U(1 - perturbation, 1 + perturbation)."
perturbed(rng::SplitMix, n::Int, perturbation::Real) = perturbed(rng, ones(n), perturbation)

"Probabilities in proportion to `shares` times U(1 - perturbation, 1 + perturbation)."
function perturbed(rng::SplitMix, shares::Vector{Float64}, perturbation::Real)
    weights, total = similar(shares), 0.0
    for i in eachindex(shares)
        weights[i] = shares[i] * (1 - perturbation + 2 * perturbation * uniform!(rng))
        total += weights[i]  # one by one: `sum` adds in another order from one Julia version to the next
    end
    return Float32.(weights ./ total)
end

function breadth_first(subtrees, root)
    order = [root]
    for i in order
        append!(order, subtrees[i])
    end
    return order
end
