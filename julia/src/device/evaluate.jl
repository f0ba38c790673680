# The way up: values of all units, level by level, and the heads' likelihoods.

"Values of all units for the samples of `load_pass!`, and what underflow may have taken from them."
function forward!(e::DeviceEngine)
    fill!(e.lost, 0f0)
    fill!(e.exponents, Int32(0))
    e.soft ? evidence_values!(e) : over!(input_value!, e, count_of(e.inputs), e.values, e.rows, e.x, e.leaf, e.inputs...)
    over!(small_input!, e, count_of(e.small), e.lost, e.values, e.rows, e.soft ? SMALL : LOSS, e.small...)
    for level in e.levels
        over!(product_values!, e, count_of(level.products), e.values, e.exponents, e.lost, e.rows, level.products...)
        over!(pair_scale!, e, count_of(level.pairs), e.values, e.exponents, e.lost, e.rows, level.pairs...)
        groups, _, _, blocks, child, _ = level.sums
        over!(common_exponent!, e, length(groups), e.exponents, e.rows, groups, blocks, child)
        for batch in level.batches
            batch_values!(e, batch)
        end
        over!(finish_sums!, e, length(groups), e.values, e.exponents, e.lost, e.rows, level.sums...)
    end
end

"leaf_h = sum over k of theta_{h,k} p(x_i | k), for all groups of inputs."
function evidence_values!(e::DeviceEngine)
    for batch in e.evidence_batches
        matrix_products!(e.values, unit_matrices(e, batch), evidence_matrices(e, e.evidence, batch), table_matrices(e, e.leaf, batch), 0f0, false, true)
    end
end

unit_matrices(e::DeviceEngine, batch::EvidenceBatch) = [group_columns(e, e.values, gi) for gi in batch.groups]

"Of each group of the batch: its variable's numbers, `(rows, categories)`, of an array by variables."
evidence_matrices(e::DeviceEngine, array, batch::EvidenceBatch) = [view(array, :, :, e.schedule.groups[gi].variable) for gi in batch.groups]
table_matrices(e::DeviceEngine, array, batch::EvidenceBatch) = [table_matrix(array, e.schedule.groups[gi]) for gi in batch.groups]

"How many columns of scratch the sums of a batch take, and what they sum over."
sums_of(batch) = count_of(batch.sums)
children_of(batch::DenseBatch) = length(batch.members) * batch.inputs
children_of(batch::SparseBatch) = count_of(batch.of_children)

function batch_values!(e::DeviceEngine, batch::DenseBatch)
    parts = batch.alone ? [group_columns(e, e.values, gi) for (gi, _) in batch.members] : scratch_parts(e, 1, batch, batch.width)
    matrix_products!(e.values, parts, batch_inputs(e, batch), block_matrices(e, e.weight, batch), 0f0)
    batch.alone || over!(add_block!, e, sums_of(batch), e.values, e.scratch[1], e.exponents, e.rows, batch.adds, batch.sums...)
end

function batch_values!(e::DeviceEngine, batch::SparseBatch)
    out = batch.alone ? e.values : e.scratch[1]
    over!(sparse_sums!, e, sums_of(batch), out, e.values, e.weight, e.rows, batch.place..., batch.of_sums...)
    batch.alone || over!(add_block!, e, sums_of(batch), e.values, e.scratch[1], e.exponents, e.rows, batch.adds, batch.sums...)
end

"`columns` columns of scratch for each block of the batch, as matrices."
scratch_parts(e::DeviceEngine, which::Int, batch::DenseBatch, columns::Int) =
    [view(e.scratch[which], :, (k - 1) * columns + 1:k * columns) for k in eachindex(batch.members)]

block_matrices(e::DeviceEngine, array, batch::DenseBatch) =
    [block_matrix(array, e.schedule.groups[gi], block, batch.inputs) for (gi, block) in batch.members]

"What the blocks multiply their weights with, `(rows, units)`: the values of their child groups, or of pairs, made here."
function batch_inputs(e::DeviceEngine, batch::DenseBatch)
    batch.pairs === nothing && return [group_columns(e, e.values, block.child) for (_, block) in batch.members]
    over!(pair_product!, e, children_of(batch), e.scratch[2], e.values, e.rows, batch.pairs..., batch.children...)
    return scratch_parts(e, 2, batch, batch.inputs)
end

"The heads' values, NaN where they are not certain, and their exponents, of a pass: on the host, `(rows, units that are heads)`."
function head_values(e::DeviceEngine)
    sizes = (e.rows, length(e.heads[1]))
    value, exponent = zeros_at(e, Float32, sizes...), zeros_at(e, Int32, sizes...)
    over!(take_head!, e, sizes[2], value, exponent, e.values, e.exponents, e.lost, e.rows, e.heads...)
    return Array(value), Array(exponent)
end

log_value(value::Float32, exponent::Int32) = log(Float64(value)) + exponent * log(2.0)

"Calls `f(range)` pass by pass, with the values of these samples where kernels are."
function each_pass(f, e::DeviceEngine, X::Data)
    make_room!(e, num_samples(X))
    for range in pieces(1:num_samples(X), e.rows)
        load_pass!(e, X, 1:num_samples(X), range)
        forward!(e)
        f(range)
    end
end

function log_likelihood!(out::AbstractMatrix{<:AbstractFloat}, e::DeviceEngine, X::Data, heads)
    uncertain = Int[]
    each_pass(e, X) do range
        value, exponent = head_values(e)
        for (row, n) in enumerate(range)
            for (i, head) in enumerate(heads)
                h = e.head_place[head]
                out[i, n] = log_value(value[row, h], exponent[row, h]) + offset(X, n)
            end
            all(i -> isfinite(out[i, n]), axes(out, 1)) || push!(uncertain, n)
        end
    end
    isempty(uncertain) || settle!(e)  # they are redone by the circuit
    return uncertain
end

function head_values!(values::Matrix{Float32}, scale::Vector{Float64}, e::DeviceEngine, X::Data)
    uncertain, heads = Int[], size(values, 1)
    units = place(e, Int32.(e.head_place[1:heads]))
    each_pass(e, X) do range
        value, exponent = zeros_at(e, Float32, heads, e.rows), zeros_at(e, Int32, e.rows)
        launch!(take_heads!, e.values, e.rows, value, exponent, e.values, e.exponents, e.lost, e.heads..., units)
        copyto!(values, 1 + heads * (first(range) - 1), Array(value), 1, heads * length(range))
        for (n, top) in zip(range, Array(exponent))
            scale[n] = top * log(2.0) + offset(X, n)
            any(isnan, view(values, :, n)) && push!(uncertain, n)
        end
    end
    isempty(uncertain) || settle!(e)
    return uncertain
end
