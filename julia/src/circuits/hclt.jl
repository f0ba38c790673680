# Hidden Chow-Liu trees (Liu and Van den Broeck 2021): a Chow-Liu tree over latents, one latent for each variable.

"""
    ObservedStates(X, states, head_of)

Guesses of what is hidden: `states`, integers `(variables, samples)`, the state of each variable, from 0; `head_of`, the head of
each sample, from 1. With the values `X`, of which those that are [`Masked`](@ref) count for nothing, they say what an HCLT starts from.
"""
struct ObservedStates{A,B<:AbstractMatrix{<:Integer}}
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
    V = length(parent)
    check_hclt(V, latents, categories, heads)
    subtrees = [Int[] for _ in 1:V]
    for i in 1:V
        parent[i] != 0 && push!(subtrees[parent[i]], i)
    end
    root = findfirst(iszero, parent)
    order = breadth_first(subtrees, root)
    b, start = Builder(V, hclt_size(V, latents, categories, heads)...), Starter(seed, perturbation)
    messages = Vector{UnitRange{Int}}(undef, V)  # of variable i: the sums over its states, one for each parent state
    for i in reverse(order)
        states = add_table!(b, i, latents, categories)
        fill_in!(start, (probabilities(b, u) for u in states), value_counts(observed, i, latents, categories))
        if !isempty(subtrees[i])
            for k in 1:latents
                add_product!(b, [states[k]; [messages[j][k] for j in subtrees[i]]])
            end
            states = last_units(b, latents)
        end
        for _ in 1:(i == root ? heads : latents)
            add_sum!(b, states)
        end
        messages[i] = last_units(b, i == root ? heads : latents)
        counts = i == root ? head_counts(observed, i, latents, heads) : transition_counts(observed, i, parent[i], latents)
        fill_in!(start, (weights(b, u) for u in messages[i]), counts)
    end
    return Circuit(b, messages[root])
end

"Throws an `ArgumentError` unless there may be such an HCLT, and the machine has memory for it."
function check_hclt(V, latents, categories, heads)
    sizes = (num_latents=latents, num_cats=categories, heads=heads)
    check_positive(; sizes...)
    check_room(named(; num_vars=V, sizes...), hclt_size(V, latents, categories, heads)...)
end

"Units, edges and entries of tables, at most; in Float64, which no product overflows."
function hclt_size(vars, latents, categories, heads)
    V, K = Float64(vars), Float64(latents)
    return 3 * V * K + heads, V * K^2 + 2 * V * K + heads * K, V * K * categories
end

# How often each value came with each state of variable i, each of its states with each of its parent's, and with each head.

value_counts(::Nothing, i, K, C) = nothing
value_counts(o::ObservedStates, i, K, C) = value_counts(o.X, o.states, i, K, C)
value_counts(X::AbstractMatrix, states, i, K, C) = pair_counts(view(X, i, :), view(states, i, :), C, K)

function value_counts(X, states, i, K, C)
    seen = findall(!, view(X.mask, i, :))
    return pair_counts(view(X.values, i, seen), view(states, i, seen), C, K)
end

transition_counts(::Nothing, i, parent, K) = nothing
transition_counts(o::ObservedStates, i, parent, K) = pair_counts(view(o.states, i, :), view(o.states, parent, :), K, K)

head_counts(::Nothing, i, K, heads) = nothing
head_counts(o::ObservedStates, i, K, heads) = pair_counts(view(o.states, i, :), o.head_of .- 1, K, heads)

function pair_counts(x, y, rows, columns)
    counts = zeros(rows, columns)
    in_pieces(eachindex(x)) do samples
        for n in samples
            counts[x[n] + 1, y[n] + 1] += 1
        end
    end
    return counts
end

"Where parameters start: random numbers, how far they spread, and room to work in."
struct Starter
    rng::SplitMix
    perturbation::Float64
    room::Vector{Float64}
end

function Starter(seed, perturbation)
    0 <= perturbation < 1 || throw(ArgumentError("perturbation = $perturbation: want a number in [0, 1)"))
    return Starter(SplitMix(seed), perturbation, Float64[])
end

"Fills each of `units` in with probabilities in proportion to U(1 - perturbation, 1 + perturbation)."
function fill_in!(start::Starter, units, ::Nothing=nothing)
    for out in units
        perturb_into!(start, out, Iterators.repeated(1.0, length(out)))
    end
end

"Fills each of `units` in with the shares of a column of `counts`, and `ADDED_SAMPLES` that are spread like all of them, but perturbed."
function fill_in!(start::Starter, units, counts::Matrix)
    common = vec(sum(counts, dims=2)) .+ 1
    for (k, out) in enumerate(units)
        perturb_into!(start, out, common)
        counted = sum(view(counts, :, k))
        counted == 0 && continue
        for i in eachindex(out)
            out[i] = (counts[i, k] + ADDED_SAMPLES * out[i]) / (counted + ADDED_SAMPLES)
        end
    end
end

"Probabilities in proportion to `shares` times U(1 - perturbation, 1 + perturbation)."
function perturb_into!(start::Starter, out, shares)
    low, spread, total, room = 1 - start.perturbation, 2 * start.perturbation, 0.0, resize!(start.room, length(out))
    for (i, share) in enumerate(shares)
        @inbounds room[i] = share * (low + spread * uniform!(start.rng))
        @inbounds total += room[i]  # one by one: `sum` adds in another order from one Julia version to the next
    end
    for i in eachindex(out)
        @inbounds out[i] = room[i] / total
    end
    pause(5 * length(out))
end

function breadth_first(subtrees, root)
    order = [root]
    for i in order
        append!(order, subtrees[i])
    end
    return order
end
