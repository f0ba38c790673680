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
    start(shape...) = Float32[1 - perturbation + 2 * perturbation * uniform!(rng) for _ in CartesianIndices(shape)]
    mixed(weights) = weights ./ sum(weights)

    subtrees = [Int[] for _ in 1:V]
    for i in 1:V
        parent[i] != 0 && push!(subtrees[parent[i]], i)
    end
    root = findfirst(iszero, parent)
    order = breadth_first(subtrees, root)
    b = Builder(V)
    messages = Vector{UnitRange{Int}}(undef, V)  # of variable i: the sums over its states, one for each parent state
    for i in reverse(order)
        table = start(latents, categories)
        states = add_inputs!(b, i, table ./ sum(table, dims=2))
        if !isempty(subtrees[i])
            products = [add_product!(b, vcat(states[k], [messages[j][k] for j in subtrees[i]])) for k in 1:latents]
            states = first(products):last(products)
        end
        sums = [add_sum!(b, states, mixed(start(latents))) for _ in 1:(i == root ? heads : latents)]
        messages[i] = first(sums):last(sums)
    end
    return Circuit(b, messages[root])
end

function breadth_first(subtrees, root)
    order = [root]
    for i in order
        append!(order, subtrees[i])
    end
    return order
end
