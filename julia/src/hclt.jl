# Hidden Chow-Liu trees (Liu and Van den Broeck 2021): a Chow-Liu tree over latents, one latent for each variable.

"""
    hclt(parent; latents, categories, heads = 1, perturbation = 0.4, seed = 0) -> Circuit

The HCLT over the tree `parent` (see [`chow_liu_tree`](@ref)). Variable i has `latents` hidden states, each with a
categorical input; the root variable's states are mixed by `heads` sums. Every parameter starts in proportion to
U(1 - perturbation, 1 + perturbation).
"""
function hclt(parent::AbstractVector{<:Integer}; latents::Integer, categories::Integer, heads::Integer=1,
              perturbation::Real=0.4, seed::Integer=0)
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
        table = Matrix{Float32}(undef, latents, categories)
        for k in 1:latents
            table[k, :] = perturbed(rng, categories, perturbation)
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
        count = i == root ? heads : latents
        for _ in 1:count
            add_sum!(b, states, perturbed(rng, latents, perturbation))
        end
        messages[i] = last_units(b, count)
    end
    return Circuit(b, messages[root])
end

"`n` probabilities in proportion to U(1 - perturbation, 1 + perturbation)."
function perturbed(rng::SplitMix, n::Int, perturbation::Real)
    weights, total = Vector{Float64}(undef, n), 0.0
    for i in 1:n
        weights[i] = 1 - perturbation + 2 * perturbation * uniform!(rng)
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
