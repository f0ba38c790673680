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

"""
    hclt(parent; latents, categories, leaves = [Leaf(categories)], heads = 1, perturbation = 0.4, seed = 0, observed = nothing) -> Circuit

The HCLT over the tree `parent` (see [`chow_liu_tree`](@ref)). Variable i has `latents` hidden states, each with an
input, categorical unless [`leaves`](@ref Leaf) says otherwise; the root variable's states are mixed by `heads` sums. Every parameter starts in
proportion to U(1 - perturbation, 1 + perturbation), or, where hidden states were `observed` (see [`ObservedStates`](@ref)), at what they say:
latent variable distillation (Liu, Zhang and Van den Broeck 2023) for the latents within the circuit.
"""
function hclt(parent::AbstractVector{<:Integer}; latents::Integer, categories::Integer,
              leaves::AbstractVector{Leaf}=[Leaf(categories)], heads::Integer=1, perturbation::Real=0.4,
              seed::Integer=0, observed::Union{Nothing,ObservedStates}=nothing)
    V = length(parent)
    check_hclt(V, latents, categories, heads)
    check_leaves(leaves, V)
    subtrees = [Int[] for _ in 1:V]
    for i in 1:V
        parent[i] != 0 && push!(subtrees[parent[i]], i)
    end
    root = findfirst(iszero, parent)
    order = breadth_first(subtrees, root)
    units, edges, _ = hclt_size(V, latents, categories, heads)
    b, start = Builder(V, units, edges, latents * sum(i -> num_entries(leaf_of(leaves, i)), 1:V)), Starter(seed, perturbation)
    messages = Vector{UnitRange{Int}}(undef, V)  # of variable i: the sums over its states, one for each parent state
    for i in reverse(order)
        states = add_leaves!(b, start, leaf_of(leaves, i), i, latents, seen_values(observed, i, latents, leaf_of(leaves, i)))
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

seen_values(::Nothing, i, K, leaf) = nothing
seen_values(o::ObservedStates, i, K, leaf) = seen_values(o.X, o.states, i, K, leaf)
seen_values(X::AbstractMatrix, states, i, K, leaf) = counted_values(view(X, i, :), view(states, i, :), K, leaf)

function seen_values(X, states, i, K, leaf)
    seen = findall(!, view(X.mask, i, :))
    return counted_values(view(X.values, i, seen), view(states, i, seen), K, leaf)
end

counted_values(x, states, K, leaf) =
    has_table(leaf.kind) ? pair_counts(x, states, leaf.categories, K) : state_moments(x, states, leaf.centre, K)

transition_counts(::Nothing, i, parent, K) = nothing
transition_counts(o::ObservedStates, i, parent, K) = pair_counts(view(o.states, i, :), view(o.states, parent, :), K, K)

head_counts(::Nothing, i, K, heads) = nothing
head_counts(o::ObservedStates, i, K, heads) = pair_counts(view(o.states, i, :), o.head_of .- 1, K, heads)

"Of each state: the number of its samples, the sum of their distances from the centre, and of the squares of these."
function state_moments(x, states, centre, K)
    moments = zeros(3, K)
    in_pieces(eachindex(x)) do samples
        for n in samples
            moments[:, states[n] + 1] .+= (1.0, x[n] - centre, (x[n] - centre)^2)
        end
    end
    return moments
end

function pair_counts(x, y, rows, columns)
    counts = zeros(rows, columns)
    in_pieces(eachindex(x)) do samples
        for n in samples
            counts[Int(x[n]) + 1, Int(y[n]) + 1] += 1
        end
    end
    return counts
end

function breadth_first(subtrees, root)
    order = [root]
    for i in order
        append!(order, subtrees[i])
    end
    return order
end
